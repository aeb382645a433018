//! From text to a flat tape of values, in one pass.
//!
//! The tape holds a value's nodes in the order of the text, parents before their children. A
//! bracket knows where it ends, so a reader moves over it in one step. Nesting is kept on an
//! explicit stack of bounded depth; nothing here recurses.
//!
//! Owns: the grammar. Absent: what a call means (`command.rs`); names are not looked up here.

use super::cursor::Cursor;
use super::error::{WireError, WireErrorKind};
use super::token::{self, Number, Prefix};
use super::value::Value;
use crate::config::WireLimits;

/// One node, 16 bytes. What `a` and `b` hold depends on the kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node {
    /// Where it begins in the text.
    pub(crate) at: u32,
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) kind: Kind,
    /// A union of the bits in [`flag`].
    pub(crate) flags: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `name := value`. `a`: end of the name in the text. The value follows.
    Binding,
    /// `a`, `b`: place in the text of what is between the quotes.
    Bytes,
    /// `f(...)`. `a`: end of the name in the text. `b`: node after the last argument.
    Call,
    /// Keys and values in turn. `b`: node after the last one.
    Dict,
    False,
    /// `a`, `b`: low and high half of the bits.
    Float,
    /// `(value)`. The value follows. `b`: node after it.
    Group,
    /// `a`, `b`: low and high half of the magnitude.
    Int,
    /// `name=value` in a call. `a`: end of the name in the text. The value follows.
    Keyword,
    /// `b`: node after the last item.
    List,
    /// `a`: end of the name in the text.
    Name,
    None,
    /// A sign that is not directly before a number. The value follows.
    Sign,
    /// `a`, `b`: place in the text of what is between the quotes.
    Str,
    True,
    /// `b`: node after the last item.
    Tuple,
}

pub(crate) mod flag {
    /// Of a number or a sign: written with a minus.
    pub(crate) const NEGATIVE: u8 = 1;
    /// Of a number: written with a sign.
    pub(crate) const SIGNED: u8 = 2;
    /// Of an integer: its magnitude does not fit into 64 bits.
    pub(crate) const BIG: u8 = 4;
    /// Of a string: it holds backslashes.
    pub(crate) const ESCAPED: u8 = 8;
    /// Of a string: backslashes mean themselves.
    pub(crate) const RAW: u8 = 16;
    /// Of a string: it holds carriage returns.
    pub(crate) const RETURNS: u8 = 32;
    /// Of a string: the next node is its continuation.
    pub(crate) const CONTINUED: u8 = 64;
}

/// Nodes that a tape keeps room for between batches, 1 MiB. A graph of some hundred kernels fits.
const NODES_KEPT_MAX: usize = 1 << 16;

/// Values read from a text, as a flat list of nodes. Its memory is used again by the next text.
#[derive(Debug, Default)]
pub struct Tape {
    nodes: Vec<Node>,
    outer: Vec<Bracket>,
}

/// A bracket that is not closed yet.
#[derive(Clone, Copy, Debug)]
struct Bracket {
    /// Its node.
    node: usize,
    items: usize,
    kind: BracketKind,
    /// Of a call: whether there was a keyword. Of a dict: whether the key is there.
    second: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BracketKind {
    Call,
    Dict,
    List,
    /// No bracket at all.
    None,
    Paren,
}

const NO_BRACKET: Bracket = Bracket { node: 0, items: 0, kind: BracketKind::None, second: false };

impl BracketKind {
    fn closer(self) -> u8 {
        match self {
            BracketKind::Call | BracketKind::Paren => b')',
            BracketKind::Dict => b'}',
            BracketKind::List => b']',
            BracketKind::None => 0,
        }
    }
}

enum Operand {
    Complete,
    Opened,
}

/// What a name turned out to be.
enum Named {
    Binding,
    Keyword,
    Operand(Operand),
}

impl Tape {
    #[must_use]
    pub fn new() -> Self {
        Tape::default()
    }

    /// Reads one literal (with calls and names, which are not looked up) that is the whole text.
    ///
    /// # Errors
    ///
    /// The text is not one such expression, or exceeds a limit.
    pub fn parse<'a, 't>(
        &'a mut self,
        text: &'t [u8],
        limits: &WireLimits,
    ) -> Result<Value<'a, 't>, WireError> {
        let mut cursor = Cursor::new(text, limits.text_bytes_max)?;
        cursor.skip_space();
        self.read(&mut cursor, limits)?;
        cursor.skip_space();
        match cursor.peek() {
            0 => Ok(self.value(cursor.text())),
            _ => Err(cursor.unexpected("the end of the text")),
        }
    }

    /// Reads the value at the cursor and stops after it.
    pub(crate) fn read(
        &mut self,
        cursor: &mut Cursor<'_>,
        limits: &WireLimits,
    ) -> Result<(), WireError> {
        self.nodes.clear();
        self.outer.clear();
        let (nodes, outer) = (&mut self.nodes, &mut self.outer);
        let mut builder = Builder { nodes, outer, top: NO_BRACKET, cursor: *cursor, limits };
        builder.read()?;
        *cursor = builder.cursor;
        Ok(())
    }

    /// Gives back what a huge command of an earlier batch has needed.
    pub(crate) fn trim(&mut self) {
        self.nodes.clear();
        self.nodes.shrink_to(NODES_KEPT_MAX);
    }

    /// Nodes that `read` has left.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The value that `read` has left.
    pub(crate) fn value<'a, 't>(&'a self, text: &'t str) -> Value<'a, 't> {
        Value::new(&self.nodes, text, 0)
    }
}

struct Builder<'b, 't> {
    nodes: &'b mut Vec<Node>,
    /// The innermost bracket.
    top: Bracket,
    /// The brackets around it.
    outer: &'b mut Vec<Bracket>,
    cursor: Cursor<'t>,
    limits: &'b WireLimits,
}

impl Builder<'_, '_> {
    fn read(&mut self) -> Result<(), WireError> {
        loop {
            if let Operand::Opened = self.operand()? {
                self.cursor.skip_space();
                if !self.cursor.eat(self.top.kind.closer()) {
                    continue;
                }
                self.close(false);
            }
            if self.after_value()? {
                return Ok(());
            }
        }
    }

    /// What follows a value: closes brackets, and moves to the next operand. True if no bracket is
    /// open any more.
    #[inline]
    fn after_value(&mut self) -> Result<bool, WireError> {
        loop {
            match self.top.kind {
                BracketKind::None => return Ok(true),
                BracketKind::Dict if !self.top.second => {
                    self.cursor.skip_space();
                    if !self.cursor.eat(b':') {
                        return Err(self.cursor.unexpected("`:` after a dict's key"));
                    }
                    self.top.second = true;
                    self.cursor.skip_space();
                    return Ok(false);
                }
                BracketKind::Dict => self.top.second = false,
                _ => {}
            }
            self.cursor.skip_space();
            self.top.items += 1;
            if self.top.items > self.limits.items_max {
                let max = self.limits.items_max;
                return Err(self.cursor.error(WireErrorKind::TooManyItems { max }));
            }
            let comma = self.cursor.eat(b',');
            if comma {
                self.cursor.skip_space();
            }
            match self.cursor.eat(self.top.kind.closer()) {
                true => self.close(comma),
                false if comma => return Ok(false),
                false => return Err(self.cursor.unexpected("`,` or a closing bracket")),
            }
        }
    }

    /// Ends the innermost bracket.
    fn close(&mut self, comma: bool) {
        let end = u32::try_from(self.nodes.len()).expect("there are fewer nodes than text bytes");
        let bracket = std::mem::replace(&mut self.top, self.outer.pop().unwrap_or(NO_BRACKET));
        let node = &mut self.nodes[bracket.node];
        node.b = end;
        if bracket.kind == BracketKind::Paren && bracket.items == 1 && !comma {
            node.kind = Kind::Group;
        }
    }

    fn push(&mut self, node: Node) -> Result<(), WireError> {
        let max = self.limits.nodes_max;
        if self.nodes.len() >= max {
            return Err(WireError::new(node.at as usize, WireErrorKind::TooManyNodes { max }));
        }
        self.nodes.push(node);
        Ok(())
    }

    /// A node that begins here.
    fn node(&self, kind: Kind) -> Node {
        Node { at: self.cursor.at_u32(), a: 0, b: 0, kind, flags: 0 }
    }

    /// Takes an opening bracket.
    fn open(&mut self, node: Node, kind: BracketKind) -> Result<Operand, WireError> {
        let max = self.limits.depth_max;
        if self.outer.len() >= max {
            return Err(self.cursor.error(WireErrorKind::TooDeep { max }));
        }
        self.outer.push(self.top);
        self.top = Bracket { node: self.nodes.len(), items: 0, kind, second: false };
        self.cursor.bump(1);
        self.push(node)?;
        Ok(Operand::Opened)
    }

    /// Reads a scalar or the opening of a bracket, and the `name=` or `name:=` before it.
    fn operand(&mut self) -> Result<Operand, WireError> {
        let start = self.cursor;
        let late = self.top.kind == BracketKind::Call && self.top.second;
        let mut keyword = false;
        let mut operand = None;
        if token::starts_name(self.cursor.peek()) {
            match self.name(true)? {
                Named::Binding => {}
                Named::Keyword => keyword = true,
                Named::Operand(complete) => operand = Some(complete),
            }
        }
        if late && !keyword {
            return Err(start.unexpected("no positional argument after a keyword argument"));
        }
        operand.map_or_else(|| self.atom(), Ok)
    }

    fn atom(&mut self) -> Result<Operand, WireError> {
        match self.cursor.peek() {
            b'\'' | b'"' => self.strings(Prefix::default()),
            b'0'..=b'9' | b'.' => self.number(self.node(Kind::Int)),
            b'(' => self.open(self.node(Kind::Tuple), BracketKind::Paren),
            b'[' => self.open(self.node(Kind::List), BracketKind::List),
            b'{' => self.open(self.node(Kind::Dict), BracketKind::Dict),
            b'+' | b'-' => self.signed(),
            byte if token::starts_name(byte) => self.plain_name(),
            _ => Err(self.cursor.unexpected("a value")),
        }
    }

    /// Reads a sign and the start of what it belongs to. There is at most one.
    fn signed(&mut self) -> Result<Operand, WireError> {
        let mut node = self.node(Kind::Sign);
        node.flags = if self.cursor.take() == b'-' { flag::NEGATIVE } else { 0 };
        self.cursor.skip_space();
        let byte = self.cursor.peek();
        if byte.is_ascii_digit() || byte == b'.' {
            return self.number(Node { kind: Kind::Int, flags: node.flags | flag::SIGNED, ..node });
        }
        self.push(node)?;
        match byte {
            b'(' => self.open(self.node(Kind::Tuple), BracketKind::Paren),
            _ if token::starts_name(byte) => self.plain_name(),
            _ => Err(self.cursor.unexpected("a number after the sign")),
        }
    }

    fn plain_name(&mut self) -> Result<Operand, WireError> {
        match self.name(false)? {
            Named::Operand(operand) => Ok(operand),
            Named::Binding | Named::Keyword => Err(self.cursor.unexpected("a value")),
        }
    }

    fn number(&mut self, mut node: Node) -> Result<Operand, WireError> {
        let bits = match token::number(&mut self.cursor, self.limits.digits_max)? {
            Number::Int(magnitude) => magnitude,
            Number::BigInt => {
                node.flags |= flag::BIG;
                0
            }
            Number::Float(value) => {
                node.kind = Kind::Float;
                value.to_bits()
            }
        };
        [node.a, node.b] = halves(bits);
        self.push(node)?;
        Ok(Operand::Complete)
    }

    /// Reads adjacent strings, which are one value. The cursor is at the first one's prefix.
    fn strings(&mut self, mut prefix: Prefix) -> Result<Operand, WireError> {
        let kind = prefix.kind;
        loop {
            let mut node = self.node(kind);
            self.cursor.bump(prefix.bytes);
            let quoted = token::quoted(&mut self.cursor)?;
            (node.a, node.b) = (quoted.from, quoted.to);
            node.flags = if prefix.raw { flag::RAW } else { 0 }
                | if quoted.escaped { flag::ESCAPED } else { 0 }
                | if quoted.returns { flag::RETURNS } else { 0 };
            let index = self.nodes.len();
            self.push(node)?;
            self.cursor.skip_space();
            let Some(next) = token::string_prefix(&self.cursor) else {
                return Ok(Operand::Complete);
            };
            if next.kind != kind {
                return Err(self.cursor.unexpected("a string of the same type as the one before"));
            }
            if let Some(node) = self.nodes.get_mut(index) {
                node.flags |= flag::CONTINUED;
            }
            prefix = next;
        }
    }

    /// Reads a name and what it is the start of: a string with a prefix, a keyword argument, a
    /// binding, a call.
    fn name(&mut self, first: bool) -> Result<Named, WireError> {
        if let Some(prefix) = token::string_prefix(&self.cursor) {
            return self.strings(prefix).map(Named::Operand);
        }
        let mut node = self.node(Kind::Name);
        token::name(&mut self.cursor);
        node.a = self.cursor.at_u32();
        if first && self.cursor.peek() == b'=' {
            return self.keyword(node);
        }
        let text = self.cursor.between(node.at as usize, self.cursor.at());
        node.kind = match text {
            "None" => Kind::None,
            "True" => Kind::True,
            "False" => Kind::False,
            _ => {
                self.cursor.skip_space();
                match (self.cursor.peek(), self.cursor.peek_at(1)) {
                    (b'(', _) => {
                        node.kind = Kind::Call;
                        return self.open(node, BracketKind::Call).map(Named::Operand);
                    }
                    (b'=', _) if first => return self.keyword(node),
                    (b':', b'=') if first => return self.binding(node, text),
                    _ => Kind::Name,
                }
            }
        };
        self.push(node)?;
        Ok(Named::Operand(Operand::Complete))
    }

    fn keyword(&mut self, mut node: Node) -> Result<Named, WireError> {
        if self.top.kind != BracketKind::Call {
            return Err(self.cursor.unexpected("`=` only inside a call"));
        }
        self.top.second = true;
        node.kind = Kind::Keyword;
        self.push(node)?;
        self.cursor.bump(1);
        self.cursor.skip_space();
        Ok(Named::Keyword)
    }

    fn binding(&mut self, mut node: Node, name: &str) -> Result<Named, WireError> {
        if matches!(self.top.kind, BracketKind::Dict | BracketKind::None) || name.contains('.') {
            return Err(self.cursor.unexpected("no `:=` here"));
        }
        node.kind = Kind::Binding;
        self.push(node)?;
        self.cursor.bump(2);
        self.cursor.skip_space();
        Ok(Named::Binding)
    }
}

/// The low and the high half of 64 bits.
fn halves(bits: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = bits.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}
