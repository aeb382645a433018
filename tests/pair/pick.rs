//! Where choices come from: a seed, or bytes that a fuzzer gives.

/// A source of choices.
#[derive(Debug)]
pub enum Pick {
    Bytes { bytes: Vec<u8>, at: usize },
    Seed(u64),
}

impl Pick {
    pub fn of_bytes(bytes: &[u8]) -> Pick {
        Pick::Bytes { bytes: bytes.to_vec(), at: 0 }
    }

    /// A number below `end`, which is at least 1 and at most 65,536.
    pub fn below(&mut self, end: usize) -> usize {
        match self {
            Pick::Bytes { bytes, at } => {
                let mut next = || {
                    *at += 1;
                    bytes.get(*at - 1).copied().map_or(0, usize::from)
                };
                let number = if end > 256 { next() << 8 | next() } else { next() };
                number % end
            }
            // SplitMix64.
            Pick::Seed(state) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = *state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                usize::try_from((z ^ (z >> 31)) >> 32).expect("32 bits") % end
            }
        }
    }

    pub fn percent(&mut self, percent: usize) -> bool {
        // What bytes that are used up give is "no".
        self.below(100) >= 100 - percent
    }

    pub fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// Whether nothing but zeros is to come.
    pub fn is_spent(&self) -> bool {
        matches!(self, Pick::Bytes { bytes, at } if *at >= bytes.len())
    }
}
