//! Records: calls with named fields, read and printed from one declaration.
//!
//! Owns: the trait [`Part`] of everything that can stand in a field, the matching of arguments to
//! fields, and the macro `record!` that declares a record once for both directions. So what is
//! printed can be read.
//!
//! There are two ways to read. The tape takes any Python spelling and explains what is wrong.
//! `read_plain` takes the stock client's spelling only, to the letter, without a tape, in about a
//! third of the instructions; where it fails, for whatever reason, the same text is read again by
//! way of the tape. Whatever it accepts, the tape reads as the same.

use std::borrow::Cow;
use std::fmt;

use smallvec::SmallVec;

use super::cursor::Cursor;
use super::error::{WireError, WireErrorKind};
use super::value::{Items, Value};
use super::{repr, token};
use crate::blob::Digest;

/// Something that stands in a field.
pub(crate) trait Part<'t>: Sized {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError>;
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;

    /// Reads what `write` writes, if it is of the frequent kind. Leaves the cursor anywhere where
    /// it fails.
    #[inline]
    fn read_plain(_: &mut Cursor<'t>) -> Option<Self> {
        None
    }
}

/// The names of a record's fields.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// In the order of positional arguments.
    pub(crate) fields: &'static [&'static str],
    /// Whether there is a field `session` besides, which is printed first and given by keyword.
    pub(crate) session: bool,
}

/// Fields of the largest record, `session` included.
const FIELDS_MAX: usize = 11;

/// The arguments of a call, sorted into the fields of a [`Shape`].
pub(crate) struct Fields<'a, 't> {
    shape: &'static Shape,
    call: Value<'a, 't>,
    /// Places on the tape. 0 stands for absent: a call comes before its arguments.
    slots: [u32; FIELDS_MAX],
}

impl<'a, 't> Fields<'a, 't> {
    /// Sorts `arguments`, which are those of `call`.
    #[inline]
    pub(crate) fn new(
        shape: &'static Shape,
        call: Value<'a, 't>,
        arguments: Items<'a, 't>,
    ) -> Result<Self, WireError> {
        let mut slots = [0; FIELDS_MAX];
        // Clients print in order, so look at the field after the last one first.
        let mut likely = if shape.session { shape.fields.len() } else { 0 };
        // Positional arguments come first, so their index among all is their field.
        for (positional, argument) in arguments.enumerate() {
            let (slot, value) = match argument.as_keyword() {
                Some((name, value)) => (shape.slot(name, likely, argument)?, value),
                None if positional < shape.fields.len() => (positional, argument),
                None => {
                    let max = shape.fields.len();
                    let record = shape.name;
                    return Err(argument.error(WireErrorKind::TooManyPositional { record, max }));
                }
            };
            likely = if slot == shape.fields.len() { 0 } else { slot + 1 };
            if slots[slot] != 0 {
                let (record, field) = (shape.name, shape.field(slot));
                return Err(argument.error(WireErrorKind::RepeatedField { record, field }));
            }
            slots[slot] = value.index();
        }
        Ok(Fields { shape, call, slots })
    }

    /// The value of a field, where it is given.
    #[inline]
    pub(crate) fn value(&self, slot: usize) -> Option<Value<'a, 't>> {
        let index = self.slots[slot];
        (index != 0).then(|| self.call.sibling(index))
    }

    /// Reads the field `session` of a shape that has it.
    #[inline]
    pub(crate) fn read_session<T: Part<'t>>(&self) -> Result<T, WireError> {
        self.read(self.shape.fields.len())
    }

    /// Reads the fields one by one.
    #[inline]
    pub(crate) fn in_order(&self) -> InOrder<'_, 'a, 't> {
        InOrder { fields: self, slot: 0 }
    }

    #[inline]
    fn read<T: Part<'t>>(&self, slot: usize) -> Result<T, WireError> {
        let value = self.value(slot).ok_or_else(|| {
            let (record, field) = (self.shape.name, self.shape.field(slot));
            self.call.error(WireErrorKind::MissingField { record, field })
        })?;
        T::read(value).map_err(|error| self.locate(slot, error))
    }

    #[cold]
    pub(crate) fn locate(&self, slot: usize, error: WireError) -> WireError {
        error.in_field(self.shape.name, self.shape.field(slot))
    }
}

/// The fields of a [`Fields`], in the order of its shape.
pub(crate) struct InOrder<'f, 'a, 't> {
    fields: &'f Fields<'a, 't>,
    slot: usize,
}

impl<'t> InOrder<'_, '_, 't> {
    #[inline]
    pub(crate) fn next<T: Part<'t>>(&mut self) -> Result<T, WireError> {
        self.slot += 1;
        self.fields.read(self.slot - 1)
    }

    /// Reads a field that has a default.
    pub(crate) fn next_or<T: Part<'t>>(&mut self, default: T) -> Result<T, WireError> {
        match self.fields.value(self.slot) {
            Some(_) => self.next(),
            None => {
                self.slot += 1;
                Ok(default)
            }
        }
    }
}

impl Shape {
    pub(crate) const fn new(
        name: &'static str,
        fields: &'static [&'static str],
        session: bool,
    ) -> Self {
        assert!(fields.len() < FIELDS_MAX);
        Shape { name, fields, session }
    }

    fn field(&self, slot: usize) -> &'static str {
        self.fields.get(slot).copied().unwrap_or("session")
    }

    #[inline]
    fn slot(&self, name: &str, likely: usize, argument: Value<'_, '_>) -> Result<usize, WireError> {
        if self.field(likely) == name {
            return Ok(likely);
        }
        if self.session && name == "session" {
            return Ok(self.fields.len());
        }
        self.fields.iter().position(|&field| field == name).ok_or_else(|| {
            let found = argument.quote();
            argument.error(WireErrorKind::UnknownField { record: self.name, found })
        })
    }
}

/// Declares a record: its struct, its shape, how it is read and printed. A field is
/// `"wire name" name: type`, and ` = default` where the wire may leave it out. `+ session` after
/// the record's wire name says that a field `session` comes before all others.
macro_rules! record {
    (
        $(#[$doc:meta])*
        $wire:literal $(+ $session:ident)? $name:ident $(<$life:lifetime>)? {
            $(
                $(#[$field_doc:meta])*
                $wire_field:literal $field:ident: $type:ty $(= $default:expr)?,
            )*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name $(<$life>)? {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl<'t> $name $(<$life>)? {
            pub(crate) const SHAPE: &'static $crate::wire::record::Shape =
                &$crate::wire::record::Shape::new(
                    $wire,
                    &[$($wire_field),*],
                    !<[&str]>::is_empty(&[$(stringify!($session))?]),
                );

            #[inline]
            pub(crate) fn from_fields(
                fields: &$crate::wire::record::Fields<'_, 't>,
            ) -> Result<Self, $crate::wire::WireError> {
                let mut fields = fields.in_order();
                $(let $field = $crate::wire::record::read_next!(fields $(, $default)?);)*
                Ok($name { $($field),* })
            }

            /// Reads what `write_fields` writes.
            #[inline]
            pub(crate) fn from_plain(
                cursor: &mut $crate::wire::cursor::Cursor<'t>,
            ) -> Option<Self> {
                let mut separated = Self::SHAPE.session;
                $(
                    if std::mem::replace(&mut separated, true) {
                        cursor.eat_text(concat!(", ", $wire_field, "="))?;
                    } else {
                        cursor.eat_text(concat!($wire_field, "="))?;
                    }
                    let $field = $crate::wire::record::Part::read_plain(cursor)?;
                )*
                Some($name { $($field),* })
            }

            /// Prints the fields, each after `separator` but the first, which comes after `first`.
            pub(crate) fn write_fields(
                &self,
                first: &'static str,
                f: &mut std::fmt::Formatter<'_>,
            ) -> std::fmt::Result {
                let mut separator = first;
                $(
                    f.write_str(std::mem::replace(&mut separator, ", "))?;
                    f.write_str(concat!($wire_field, "="))?;
                    $crate::wire::record::Part::write(&self.$field, f)?;
                )*
                Ok(())
            }
        }
    };
}
pub(crate) use record;

macro_rules! read_next {
    ($fields:ident) => {
        $fields.next()?
    };
    ($fields:ident, $default:expr) => {
        $fields.next_or($default)?
    };
}
pub(crate) use read_next;

/// Makes a record without session a [`Part`], and printable.
macro_rules! record_part {
    ($name:ident $(<$life:lifetime>)?) => {
        impl<'t> $crate::wire::record::Part<'t> for $name $(<$life>)? {
            #[inline]
            fn read(
                value: $crate::wire::value::Value<'_, 't>,
            ) -> Result<Self, $crate::wire::WireError> {
                match value.as_call() {
                    Some((name, arguments)) if name == Self::SHAPE.name => Self::from_fields(
                        &$crate::wire::record::Fields::new(Self::SHAPE, value, arguments)?,
                    ),
                    _ => Err(value.mismatch(concat!("a ", stringify!($name)))),
                }
            }

            #[inline]
            fn read_plain(cursor: &mut $crate::wire::cursor::Cursor<'t>) -> Option<Self> {
                cursor.eat_text(Self::SHAPE.name)?;
                cursor.eat_text("(")?;
                let record = Self::from_plain(cursor)?;
                cursor.eat_text(")")?;
                Some(record)
            }

            fn write(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(Self::SHAPE.name)?;
                f.write_str("(")?;
                self.write_fields("", f)?;
                f.write_str(")")
            }
        }

        impl $(<$life>)? std::fmt::Display for $name $(<$life>)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::wire::record::Part::write(self, f)
            }
        }
    };
}
pub(crate) use record_part;

impl<'t> Part<'t> for u64 {
    #[inline]
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        value.to_u64("an int from 0 to 2^64-1")
    }

    #[inline]
    fn read_plain(cursor: &mut Cursor<'t>) -> Option<Self> {
        token::short(cursor)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'t> Part<'t> for i64 {
    #[inline]
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        value.to_i64("an int of 64 bits")
    }

    #[inline]
    fn read_plain(cursor: &mut Cursor<'t>) -> Option<Self> {
        let negative = cursor.eat(b'-');
        let magnitude = i64::try_from(token::short(cursor)?).ok()?;
        Some(if negative { -magnitude } else { magnitude })
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'t> Part<'t> for i128 {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        value.to_i128("an int of 64 bits and a sign")
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'t> Part<'t> for bool {
    #[inline]
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        value.as_bool().ok_or_else(|| value.mismatch("True or False"))
    }

    #[inline]
    fn read_plain(cursor: &mut Cursor<'t>) -> Option<Self> {
        match cursor.eat_text("False") {
            Some(()) => Some(false),
            None => cursor.eat_text("True").map(|()| true),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&repr::Bool(*self), f)
    }
}

/// A name, which ends up in messages, in paths of caches, in C: so a NUL is refused.
impl<'t> Part<'t> for Cow<'t, str> {
    #[inline]
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        let text = value.str()?;
        // Only an escape can have put it there.
        match text {
            Cow::Owned(ref owned) if owned.contains('\0') => {
                Err(value.mismatch("a str without NUL"))
            }
            text => Ok(text),
        }
    }

    #[inline]
    fn read_plain(cursor: &mut Cursor<'t>) -> Option<Self> {
        read_plain_str(cursor).map(Cow::Borrowed)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&repr::Str(self), f)
    }
}

impl<'t> Part<'t> for [u8; 16] {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        let expected = "16 bytes";
        let bytes = value.bytes().map_err(|error| match error.kind() {
            WireErrorKind::WrongType { .. } => value.mismatch(expected),
            _ => error,
        })?;
        <[u8; 16]>::try_from(&*bytes).map_err(|_| value.mismatch(expected))
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&repr::Bytes(self), f)
    }
}

impl<'t> Part<'t> for Digest {
    #[inline]
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        let digits = value.str()?;
        Digest::from_hex(digits.as_bytes()).ok_or_else(|| value.mismatch("64 hexadecimal digits"))
    }

    #[inline]
    fn read_plain(cursor: &mut Cursor<'t>) -> Option<Self> {
        cursor.eat_text("'")?;
        let digest = Digest::from_hex(cursor.take_bytes(64)?)?;
        cursor.eat_text("'").map(|()| digest)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{self}'")
    }
}

impl<'t, T: Part<'t>> Part<'t> for Option<T> {
    #[inline]
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        if value.is_none() { Ok(None) } else { T::read(value).map(Some) }
    }

    #[inline]
    fn read_plain(cursor: &mut Cursor<'t>) -> Option<Self> {
        match cursor.eat_text("None") {
            Some(()) => Some(None),
            None => T::read_plain(cursor).map(Some),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            None => f.write_str("None"),
            Some(part) => part.write(f),
        }
    }
}

/// A Python list.
impl<'t, T: Part<'t>> Part<'t> for Vec<T> {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        value.sequence("a list")?.map(T::read).collect()
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        write_items(self, f)?;
        f.write_str("]")
    }
}

/// A Python tuple.
impl<'t, T: Part<'t>> Part<'t> for Box<[T]> {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        value.sequence("a tuple")?.map(T::read).collect()
    }

    fn read_plain(cursor: &mut Cursor<'t>) -> Option<Self> {
        let mut out = Vec::new();
        read_plain_tuple(cursor, |item| out.push(item))?;
        Some(out.into())
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_tuple(self, f)
    }
}

/// A Python tuple that is mostly short.
impl<'t, T: Part<'t>, const N: usize> Part<'t> for SmallVec<[T; N]>
where
    [T; N]: smallvec::Array<Item = T>,
{
    #[inline]
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        let mut out = SmallVec::new();
        for item in value.sequence("a tuple")? {
            out.push(T::read(item)?);
        }
        Ok(out)
    }

    #[inline]
    fn read_plain(cursor: &mut Cursor<'t>) -> Option<Self> {
        let mut out = SmallVec::new();
        read_plain_tuple(cursor, |item| out.push(item))?;
        Some(out)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_tuple(self, f)
    }
}

/// Reads a string in single quotes without anything that has to be decoded.
#[inline]
fn read_plain_str<'t>(cursor: &mut Cursor<'t>) -> Option<&'t str> {
    let (from, to) = read_plain_name(cursor)?;
    Some(cursor.between(from as usize, to as usize))
}

/// As [`read_plain_str`], and gives the string's place in the text.
#[inline]
pub(crate) fn read_plain_name(cursor: &mut Cursor<'_>) -> Option<(u32, u32)> {
    cursor.eat_text("'")?;
    let from = cursor.at_u32();
    cursor.skip_plain(b'\'');
    let to = cursor.at_u32();
    // What comes next has to be a comma or a bracket, so no string continues this one.
    cursor.eat_text("'").map(|()| (from, to))
}

/// Items of a tuple that is read without a tape. Longer ones are left to the tape, which knows the
/// limits.
const PLAIN_ITEMS_MAX: u8 = 64;

/// Reads a tuple, item by item, and says how many there are.
#[inline]
pub(crate) fn read_plain_tuple<'t, T: Part<'t>>(
    cursor: &mut Cursor<'t>,
    mut push: impl FnMut(T),
) -> Option<u8> {
    cursor.eat_text("(")?;
    if cursor.eat(b')') {
        return Some(0);
    }
    for count in 1..=PLAIN_ITEMS_MAX {
        push(T::read_plain(cursor)?);
        if cursor.eat_text(", ").is_some() {
            continue;
        }
        return cursor.eat_text(if count == 1 { ",)" } else { ")" }).map(|()| count);
    }
    None
}

pub(crate) fn write_tuple<'t, T: Part<'t>>(items: &[T], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str("(")?;
    write_items(items, f)?;
    f.write_str(if items.len() == 1 { ",)" } else { ")" })
}

pub(crate) fn write_items<'t, T: Part<'t>>(items: &[T], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    items.iter().enumerate().try_for_each(|(index, item)| {
        if index > 0 {
            f.write_str(", ")?;
        }
        item.write(f)
    })
}
