//! Reading a tape.
//!
//! Owns: [`Value`], a place on a tape with the text it came from, and its readings as Rust types.
//! A reading that does not fit says what was expected and what stands there.

use std::borrow::Cow;

use super::cursor::slice;
use super::error::{WireError, WireErrorKind, quote, quote_next};
use super::escape;
use super::tape::{Kind, Node, flag};

/// A value of a text, in its [`Tape`](super::Tape).
#[derive(Clone, Copy, Debug)]
pub struct Value<'a, 't> {
    nodes: &'a [Node],
    text: &'t str,
    index: usize,
}

/// What a [`Value`] is.
#[derive(Clone, Debug)]
pub enum View<'a, 't> {
    /// `name := value`.
    Binding(&'t str, Value<'a, 't>),
    Bool(bool),
    Bytes(Cow<'t, [u8]>),
    /// The name, and the arguments: values, and [`View::Keyword`].
    Call(&'t str, Items<'a, 't>),
    /// Keys and values in turn.
    Dict(Items<'a, 't>),
    Float(f64),
    Int(Int),
    /// `name=value` in a call.
    Keyword(&'t str, Value<'a, 't>),
    List(Items<'a, 't>),
    Name(&'t str),
    None,
    Str(Cow<'t, str>),
    Tuple(Items<'a, 't>),
}

/// An integer as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int {
    pub negative: bool,
    /// `None` where it does not fit.
    pub magnitude: Option<u64>,
}

impl Int {
    fn to_u64(self) -> Option<u64> {
        self.magnitude.filter(|&magnitude| !self.negative || magnitude == 0)
    }

    fn to_i64(self) -> Option<i64> {
        match self.negative {
            true => 0i64.checked_sub_unsigned(self.magnitude?),
            false => i64::try_from(self.magnitude?).ok(),
        }
    }
}

/// The values inside a bracket.
#[derive(Clone, Debug)]
pub struct Items<'a, 't> {
    next: Value<'a, 't>,
    end: usize,
}

impl<'a, 't> Iterator for Items<'a, 't> {
    type Item = Value<'a, 't>;

    #[inline]
    fn next(&mut self) -> Option<Value<'a, 't>> {
        if self.next.index >= self.end {
            return None;
        }
        let value = self.next;
        self.next.index = value.after();
        Some(value)
    }
}

impl<'a, 't> Value<'a, 't> {
    pub(crate) fn new(nodes: &'a [Node], text: &'t str, index: usize) -> Self {
        Value { nodes, text, index }
    }

    /// The value at another place of the same tape.
    #[inline]
    pub(crate) fn sibling(self, index: u32) -> Self {
        Value { index: index as usize, ..self }
    }

    #[inline]
    pub(crate) fn index(self) -> u32 {
        u32::try_from(self.index).expect("there are fewer nodes than text bytes")
    }

    #[inline]
    fn node(self) -> Node {
        self.nodes[self.index]
    }

    #[inline]
    fn child(self) -> Self {
        Value { index: self.index + 1, ..self }
    }

    /// Byte offset in the text.
    #[must_use]
    pub fn at(self) -> usize {
        self.node().at as usize
    }

    /// Index of the node after this value and all that is inside it.
    #[inline]
    fn after(self) -> usize {
        let mut index = self.index;
        loop {
            let node = self.nodes[index];
            match node.kind {
                Kind::Call | Kind::Dict | Kind::Group | Kind::List | Kind::Tuple => {
                    return node.b as usize;
                }
                Kind::Binding | Kind::Keyword | Kind::Sign => index += 1,
                Kind::Bytes | Kind::Str if node.flags & flag::CONTINUED != 0 => index += 1,
                _ => return index + 1,
            }
        }
    }

    /// The value inside parentheses that only group.
    #[inline]
    fn ungrouped(mut self) -> Self {
        while self.node().kind == Kind::Group {
            self = self.child();
        }
        self
    }

    #[inline]
    fn items(self) -> Items<'a, 't> {
        Items { next: self.child(), end: self.node().b as usize }
    }

    fn name(self) -> &'t str {
        let node = self.node();
        slice(self.text, node.at as usize, node.a as usize)
    }

    /// What it is, whatever that may be.
    ///
    /// # Errors
    ///
    /// A string with bad escapes, or a sign before something that is no number.
    pub fn view(self) -> Result<View<'a, 't>, WireError> {
        let value = self.ungrouped();
        Ok(match value.node().kind {
            Kind::Binding => View::Binding(value.name(), value.child()),
            Kind::Bytes => View::Bytes(value.bytes()?),
            Kind::Call => View::Call(value.name(), value.items()),
            Kind::Dict => View::Dict(value.items()),
            Kind::False => View::Bool(false),
            Kind::Float => View::Float(value.float()?),
            Kind::Int => View::Int(value.int("an int")?),
            Kind::Keyword => View::Keyword(value.name(), value.child()),
            Kind::List => View::List(value.items()),
            Kind::Name => match value.name() {
                "inf" | "nan" => View::Float(value.float()?),
                name => View::Name(name),
            },
            Kind::None => View::None,
            Kind::Sign => match value.number() {
                Some((number, _)) if number.node().kind == Kind::Int => {
                    View::Int(value.int("an int")?)
                }
                _ => View::Float(value.float()?),
            },
            Kind::Str => View::Str(value.str()?),
            Kind::True => View::Bool(true),
            // `ungrouped` leaves no group.
            Kind::Group | Kind::Tuple => View::Tuple(value.items()),
        })
    }

    /// The number here and whether it is negative. `None` if it is no number.
    #[inline]
    fn number(self) -> Option<(Value<'a, 't>, bool)> {
        let mut value = self.ungrouped();
        let mut flags = value.node().flags;
        if value.node().kind == Kind::Sign {
            value = value.child().ungrouped();
            if value.node().flags & flag::SIGNED != 0 {
                return None;
            }
        } else {
            flags = value.node().flags;
        }
        match value.node().kind {
            Kind::Int | Kind::Float => {}
            Kind::Name if matches!(value.name(), "inf" | "nan") => {}
            _ => return None,
        }
        Some((value, flags & flag::NEGATIVE != 0))
    }

    #[inline]
    fn int(self, expected: &'static str) -> Result<Int, WireError> {
        let node = self.node();
        if node.kind == Kind::Int && node.flags == 0 {
            return Ok(Int { negative: false, magnitude: Some(whole(node)) });
        }
        let (value, negative) = self.number().ok_or_else(|| self.mismatch(expected))?;
        let node = value.node();
        if node.kind != Kind::Int {
            return Err(self.mismatch(expected));
        }
        let magnitude = (node.flags & flag::BIG == 0).then(|| whole(node));
        Ok(Int { negative, magnitude })
    }

    fn float(self) -> Result<f64, WireError> {
        let (value, negative) = self.number().ok_or_else(|| self.mismatch("a float"))?;
        let node = value.node();
        let magnitude = match node.kind {
            Kind::Float => f64::from_bits(whole(node)),
            Kind::Name if value.name() == "inf" => f64::INFINITY,
            Kind::Name => f64::NAN,
            _ => return Err(self.mismatch("a float")),
        };
        Ok(if negative { -magnitude } else { magnitude })
    }

    #[inline]
    pub(crate) fn to_u64(self, expected: &'static str) -> Result<u64, WireError> {
        self.int(expected)?.to_u64().ok_or_else(|| self.out_of_range(expected))
    }

    #[inline]
    pub(crate) fn to_i64(self, expected: &'static str) -> Result<i64, WireError> {
        self.int(expected)?.to_i64().ok_or_else(|| self.out_of_range(expected))
    }

    pub(crate) fn to_i128(self, expected: &'static str) -> Result<i128, WireError> {
        let Int { negative, magnitude } = self.int(expected)?;
        let magnitude = i128::from(magnitude.ok_or_else(|| self.out_of_range(expected))?);
        Ok(if negative { -magnitude } else { magnitude })
    }

    /// `True` or `False`, `None` for anything else.
    #[inline]
    pub(crate) fn as_bool(self) -> Option<bool> {
        match self.ungrouped().node().kind {
            Kind::False => Some(false),
            Kind::True => Some(true),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn is_none(self) -> bool {
        self.ungrouped().node().kind == Kind::None
    }

    pub(crate) fn is_str(self) -> bool {
        self.ungrouped().node().kind == Kind::Str
    }

    pub(crate) fn is_int(self) -> bool {
        self.number().is_some_and(|(number, _)| number.node().kind == Kind::Int)
    }

    #[inline]
    pub(crate) fn str(self) -> Result<Cow<'t, str>, WireError> {
        let value = self.ungrouped();
        let node = value.node();
        if node.kind != Kind::Str {
            return Err(self.mismatch("a str"));
        }
        if node.is_plain() {
            return Ok(Cow::Borrowed(value.body()));
        }
        let mut out = String::new();
        value.fragments().try_for_each(|part| {
            let Node { a, flags, .. } = part.node();
            escape::decode_str(part.body(), flags & flag::RAW != 0, a as usize, &mut out)
        })?;
        Ok(Cow::Owned(out))
    }

    pub(crate) fn bytes(self) -> Result<Cow<'t, [u8]>, WireError> {
        let value = self.ungrouped();
        let node = value.node();
        if node.kind != Kind::Bytes {
            return Err(self.mismatch("bytes"));
        }
        if let Some(bad) = value.fragments().find(|part| !part.body().is_ascii()) {
            let reason = "bytes literals hold ASCII characters only";
            return Err(WireError::new(bad.at(), WireErrorKind::Escape { reason }));
        }
        if node.is_plain() {
            return Ok(Cow::Borrowed(value.body().as_bytes()));
        }
        let mut out = Vec::new();
        value.fragments().try_for_each(|part| {
            let Node { a, flags, .. } = part.node();
            escape::decode_bytes(part.body(), flags & flag::RAW != 0, a as usize, &mut out)
        })?;
        Ok(Cow::Owned(out))
    }

    /// What is between the quotes of one string.
    #[inline]
    fn body(self) -> &'t str {
        let node = self.node();
        slice(self.text, node.a as usize, node.b as usize)
    }

    /// This string and those that continue it.
    fn fragments(self) -> impl Iterator<Item = Value<'a, 't>> {
        std::iter::successors(Some(self), |part| {
            (part.node().flags & flag::CONTINUED != 0).then(|| part.child())
        })
    }

    /// The items of a tuple or a list, which the wire does not tell apart.
    #[inline]
    pub(crate) fn sequence(self, expected: &'static str) -> Result<Items<'a, 't>, WireError> {
        let value = self.ungrouped();
        match value.node().kind {
            Kind::List | Kind::Tuple => Ok(value.items()),
            _ => Err(self.mismatch(expected)),
        }
    }

    /// The keys and values of a dict, in turn.
    pub(crate) fn dict(self, expected: &'static str) -> Result<Items<'a, 't>, WireError> {
        let value = self.ungrouped();
        match value.node().kind {
            Kind::Dict => Ok(value.items()),
            _ => Err(self.mismatch(expected)),
        }
    }

    /// The name and the arguments of a call.
    #[inline]
    pub(crate) fn as_call(self) -> Option<(&'t str, Items<'a, 't>)> {
        let value = self.ungrouped();
        (value.node().kind == Kind::Call).then(|| (value.name(), value.items()))
    }

    /// A name that is no literal.
    pub(crate) fn as_name(self) -> Option<&'t str> {
        let value = self.ungrouped();
        (value.node().kind == Kind::Name).then(|| value.name())
    }

    /// The name and the value of a keyword argument.
    #[inline]
    pub(crate) fn as_keyword(self) -> Option<(&'t str, Value<'a, 't>)> {
        (self.node().kind == Kind::Keyword).then(|| (self.name(), self.child()))
    }

    /// The name and the value of a binding.
    pub(crate) fn as_binding(self) -> Option<(&'t str, Value<'a, 't>)> {
        let value = self.ungrouped();
        (value.node().kind == Kind::Binding).then(|| (value.name(), value.child()))
    }

    /// The error for a value of the wrong type.
    #[cold]
    pub(crate) fn mismatch(self, expected: &'static str) -> WireError {
        self.error(WireErrorKind::WrongType { expected, found: self.quote() })
    }

    /// The error for a value of the right type that the field has no room for.
    #[cold]
    pub(crate) fn out_of_range(self, expected: &'static str) -> WireError {
        self.error(WireErrorKind::OutOfRange { expected, found: self.quote() })
    }

    #[cold]
    pub(crate) fn error(self, kind: WireErrorKind) -> WireError {
        WireError::new(self.at(), kind)
    }

    /// What it is, for an error message.
    #[cold]
    pub(crate) fn quote(self) -> String {
        let value = self.ungrouped();
        let node = value.node();
        match node.kind {
            Kind::Binding | Kind::Call | Kind::Keyword | Kind::Name => quote(value.name()),
            // With its prefix and its quotes, but for the closing two of three.
            Kind::Bytes | Kind::Str => quote(slice(self.text, value.at(), node.b as usize + 1)),
            Kind::Dict => "a dict".to_owned(),
            Kind::Group | Kind::Tuple => "a tuple".to_owned(),
            Kind::List => "a list".to_owned(),
            Kind::False | Kind::Float | Kind::Int | Kind::None | Kind::Sign | Kind::True => {
                let rest = self.text.get(value.at()..).unwrap_or_default();
                match rest.strip_prefix('-') {
                    Some(rest) => format!("minus {}", quote_next(rest.trim_start())),
                    None => quote_next(rest),
                }
            }
        }
    }
}

impl Node {
    /// Whether a string's value is what is between its quotes.
    #[inline]
    fn is_plain(self) -> bool {
        match self.flags & (flag::ESCAPED | flag::RAW | flag::RETURNS | flag::CONTINUED) {
            0 | flag::RAW => true,
            flags => flags == flag::ESCAPED | flag::RAW,
        }
    }
}

/// The 64 bits of a number.
fn whole(node: Node) -> u64 {
    u64::from(node.b) << 32 | u64::from(node.a)
}
