//! What the fake compilers make and the fake drivers load: kernels by name, with their parameters.
//!
//! A binary is text behind the first bytes of an ELF file, ends in a zero byte and names the
//! architecture that it is for. PTX is read as text, as far as its entries go.

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parameter {
    Pointer,
    Int,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// From the launch bounds; 0 where there are none.
    pub(crate) block_threads: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) parameters: Vec<Parameter>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) arch: String,
    pub(crate) kernels: Vec<Kernel>,
    /// What the compiler was told: options and headers, for tests to look at.
    pub(crate) notes: Vec<String>,
    /// What was compiled, for a machine that runs real kernels.
    pub(crate) source: String,
}

pub(crate) const MAGIC: &[u8] = b"\x7fELF fake device code\n";

impl Kernel {
    /// Bytes of the packed arguments, without padding at the end.
    pub(crate) fn argument_bytes(&self) -> usize {
        let mut bytes = 0_usize;
        for parameter in &self.parameters {
            bytes = match parameter {
                Parameter::Pointer => bytes.next_multiple_of(8) + 8,
                Parameter::Int => bytes + 4,
            };
        }
        bytes
    }

    /// Pointers and ints of packed arguments that have the right length.
    pub(crate) fn unpacked(&self, bytes: &[u8]) -> (Vec<u64>, Vec<i32>) {
        let (mut pointers, mut ints, mut at) = (Vec::new(), Vec::new(), 0_usize);
        for parameter in &self.parameters {
            match parameter {
                Parameter::Pointer => {
                    at = at.next_multiple_of(8);
                    let word = bytes[at..at + 8].try_into().expect("eight bytes");
                    pointers.push(u64::from_le_bytes(word));
                    at += 8;
                }
                Parameter::Int => {
                    let word = bytes[at..at + 4].try_into().expect("four bytes");
                    ints.push(i32::from_le_bytes(word));
                    at += 4;
                }
            }
        }
        (pointers, ints)
    }
}

impl Image {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let mut text = format!("arch {}\n", self.arch);
        for kernel in &self.kernels {
            let letter = |parameter: &Parameter| match parameter {
                Parameter::Pointer => 'p',
                Parameter::Int => 'i',
            };
            let parameters: String = kernel.parameters.iter().map(letter).collect();
            let Kernel { name, block_threads, shared_bytes, .. } = kernel;
            text += &format!("kernel {name} {block_threads} {shared_bytes} {parameters}\n");
        }
        for note in &self.notes {
            text += &format!("note {note}\n");
        }
        text += "source ";
        for byte in self.source.bytes() {
            text += &format!("{byte:02x}");
        }
        text.push('\n');
        bytes.extend_from_slice(text.as_bytes());
        bytes.extend_from_slice(b"end\n\0");
        bytes
    }

    /// Reads what [`Image::to_bytes`] wrote, without or with its zero byte.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Image> {
        let text = std::str::from_utf8(bytes.strip_prefix(MAGIC)?).ok()?;
        let text = text.trim_end_matches('\0').strip_suffix("end\n")?;
        let mut image = Image::default();
        for line in text.lines() {
            match line.split_once(' ')? {
                ("arch", arch) => image.arch = arch.to_owned(),
                ("note", note) => image.notes.push(note.to_owned()),
                ("source", source) => image.source = from_hex(source)?,
                ("kernel", kernel) => image.kernels.push(kernel_of(kernel)?),
                _ => return None,
            }
        }
        Some(image)
    }
}

fn from_hex(text: &str) -> Option<String> {
    let byte = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
    let bytes = text.as_bytes().chunks(2).map(byte).collect::<Option<Vec<u8>>>()?;
    String::from_utf8(bytes).ok()
}

fn kernel_of(line: &str) -> Option<Kernel> {
    let mut fields = line.split(' ');
    let name = fields.next()?.to_owned();
    let block_threads = fields.next()?.parse().ok()?;
    let shared_bytes = fields.next()?.parse().ok()?;
    let parameter = |letter| match letter {
        'p' => Some(Parameter::Pointer),
        'i' => Some(Parameter::Int),
        _ => None,
    };
    let parameters = fields.next()?.chars().map(parameter).collect::<Option<_>>()?;
    Some(Kernel { name, block_threads, shared_bytes, parameters })
}

/// Text without comments.
pub(crate) fn uncommented(text: &str) -> String {
    let (mut code, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('/') {
        let (before, comment) = rest.split_at(at);
        code += before;
        let end = if comment.starts_with("//") {
            comment.find('\n').unwrap_or(comment.len())
        } else if comment.starts_with("/*") {
            comment.find("*/").map_or(comment.len(), |end| end + 2)
        } else {
            code.push('/');
            rest = &comment[1..];
            continue;
        };
        // Lines stay where they are.
        code.extend(comment[..end].chars().filter(|&c| c == '\n'));
        rest = &comment[end..];
    }
    code + rest
}

/// Why PTX text is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PtxError {
    /// The driver's compiler's words.
    Text(String),
    /// Written for a newer compiler.
    Version,
    /// Written for a newer device.
    Target,
}

/// Reads PTX text for a device of `arch`, such as `sm_90`.
pub(crate) fn ptx(text: &str, arch: &str) -> Result<Image, PtxError> {
    let code = uncommented(text);
    let line_of = |at: usize| code[..at].matches('\n').count() + 1;
    let wrong = |at: usize, what: &str| {
        PtxError::Text(format!("ptxas application ptx input, line {}; {what}", line_of(at)))
    };
    let directive = |name: &str| {
        let at = code.find(name).ok_or_else(|| wrong(0, &format!("fatal   : Missing {name}")))?;
        let words = code[at..].split_whitespace().nth(1).unwrap_or_default();
        Ok((at, words.trim_matches([',', ';']).to_owned()))
    };
    let (at, version) = directive(".version")?;
    let (major, _) = version
        .split_once('.')
        .and_then(|(major, minor)| Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?)))
        .ok_or_else(|| wrong(at, &format!("error   : Unexpected version {version}")))?;
    if major > 9 {
        return Err(PtxError::Version);
    }
    let (at, target) = directive(".target")?;
    let number = |arch: &str| arch.strip_prefix("sm_")?.trim_end_matches('a').parse::<u32>().ok();
    let target = number(&target)
        .ok_or_else(|| wrong(at, &format!("error   : Unknown target '{target}'")))?;
    if number(arch).is_some_and(|own| target > own) {
        return Err(PtxError::Target);
    }
    if code.matches('{').count() != code.matches('}').count() {
        return Err(wrong(code.len(), "fatal   : Parsing error near '': syntax error"));
    }
    let mut image = Image { arch: arch.to_owned(), ..Image::default() };
    for (at, _) in code.match_indices(".entry") {
        image.kernels.push(
            entry(&code[at + ".entry".len()..])
                .ok_or_else(|| wrong(at, "fatal   : Parsing error near '.entry'"))?,
        );
    }
    Ok(image)
}

/// The kernel whose name begins here.
fn entry(text: &str) -> Option<Kernel> {
    let (head, body) = text.split_once('{')?;
    let (name, rest) = head.split_once('(').unwrap_or((head, ")"));
    let (parameters, limits) = rest.split_once(')')?;
    let parameter = |text: &str| {
        let kind = text.split_whitespace().find(|word| *word != ".param")?;
        match kind {
            ".u64" | ".s64" | ".b64" => Some(Parameter::Pointer),
            ".u32" | ".s32" | ".b32" => Some(Parameter::Int),
            _ => None,
        }
    };
    let parameters = parameters.split(',').filter(|text| !text.trim().is_empty());
    let parameters = parameters.map(parameter).collect::<Option<Vec<_>>>()?;
    let limit = limits.split_once(".maxntid").map(|(_, numbers)| {
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let numbers = numbers.lines().next().unwrap_or_default();
        numbers.split(',').filter_map(number).product::<u32>()
    });
    let shared = body.split_once(".shared").and_then(|(_, shared)| {
        let (_, count) = shared.split(';').next()?.split_once('[')?;
        count.trim_end_matches(']').trim().parse().ok()
    });
    Some(Kernel {
        name: name.trim().to_owned(),
        block_threads: limit.unwrap_or(0),
        shared_bytes: shared.unwrap_or(0),
        parameters,
    })
}
