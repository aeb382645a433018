//! Integers that depend on variables: launch sizes of a graph's kernels.
//!
//! The client writes tinygrad's `UOp` trees. A node that has several parents is written once, with
//! a name (`x2:=UOp(...)`), and then by this name; it is kept once here too, so the size of an
//! expression is that of its text. A name is known from where it is bound to the end of its tree,
//! as the client numbers each tree anew.
//!
//! Owns: [`Integer`], [`Expression`], [`Variable`], their reading and evaluation. Printing is in
//! `symbolic_repr.rs`, names of operations are in `dtype.rs`. Operations that have no value on
//! integers are refused when they are read. Nothing here recurses.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use smallvec::SmallVec;

use super::dtype::{DataType, NamedOperation, Operation};
use super::error::{WireError, WireErrorKind};
use super::record::{Fields, Part, Shape};
use super::repr;
use super::value::{Items, Value};

/// An integer, or what to compute it from.
#[derive(Clone, Debug, PartialEq)]
pub enum Integer<'t> {
    Expression(Expression<'t>),
    Fixed(i64),
}

/// An integer expression: nodes after their sources, the root last.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression<'t> {
    pub(super) nodes: Vec<Node<'t>>,
    /// Sources of all nodes, one node's after the other's: indices into `nodes`.
    pub(super) sources: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node<'t> {
    pub(super) operation: Operation,
    pub(super) data_type: DataType,
    pub(super) argument: Argument<'t>,
    /// Its part of `Expression::sources`.
    pub(super) sources: Range<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Argument<'t> {
    Bool(bool),
    Int(i64),
    None,
    Variable { name: Cow<'t, str>, min: i64, max: i64 },
}

/// A variable: `UOp(Ops.DEFINE_VAR, dtypes.int, arg=('i', 1, 10), src=())`. Variables match by
/// name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable<'t> {
    pub name: Cow<'t, str>,
    pub data_type: DataType,
    /// The least value it takes.
    pub min: i64,
    /// The greatest value it takes.
    pub max: i64,
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The value does not fit into 64 bits or into the type it is cast to, or a shift is negative.
    #[error("Ops.{operation} overflows")]
    Overflow { operation: &'static str },
    /// No value was given for a variable.
    #[error("no value for the variable {name:?}")]
    UnknownVariable { name: String },
}

/// A node that has no value. Its parents have none for the same reason.
#[derive(Clone, Copy)]
struct Fault {
    node: usize,
}

const UOP: &Shape = &Shape::new("UOp", &["op", "dtype", "src", "arg", "tag"], false);

impl Integer<'_> {
    /// The value, where `lookup` gives those of the variables.
    ///
    /// # Errors
    ///
    /// See [`Expression::eval`].
    pub fn eval(&self, lookup: &dyn Fn(&str) -> Option<i64>) -> Result<i64, EvalError> {
        match self {
            Integer::Expression(expression) => expression.eval(lookup),
            Integer::Fixed(value) => Ok(*value),
        }
    }

    #[must_use]
    pub fn into_owned(self) -> Integer<'static> {
        match self {
            Integer::Expression(expression) => Integer::Expression(expression.into_owned()),
            Integer::Fixed(value) => Integer::Fixed(value),
        }
    }
}

impl Variable<'_> {
    #[must_use]
    pub fn into_owned(self) -> Variable<'static> {
        let Variable { name, data_type, min, max } = self;
        Variable { name: Cow::Owned(name.into_owned()), data_type, min, max }
    }
}

impl<'t> Expression<'t> {
    /// The value, where `lookup` gives those of the variables.
    ///
    /// A division by zero gives zero, and rounds towards zero, as the client computes it. Only the
    /// chosen side of a `WHERE` can fail.
    ///
    /// # Errors
    ///
    /// A variable without value, an overflow of 64 bits, a negative shift.
    pub fn eval(&self, lookup: &dyn Fn(&str) -> Option<i64>) -> Result<i64, EvalError> {
        let mut values: SmallVec<[Result<i64, Fault>; 8]> = SmallVec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let value = self.eval_node(index, node, &values, lookup);
            values.push(value);
        }
        values.pop().unwrap_or(Ok(0)).map_err(|fault| self.explain(fault))
    }

    fn eval_node(
        &self,
        index: usize,
        node: &Node<'_>,
        values: &[Result<i64, Fault>],
        lookup: &dyn Fn(&str) -> Option<i64>,
    ) -> Result<i64, Fault> {
        let source = |position: u32| -> Result<i64, Fault> {
            values[self.sources[(node.sources.start + position) as usize] as usize]
        };
        let value = match (node.operation, &node.argument) {
            (_, Argument::Int(value)) => Some(*value),
            (_, Argument::Bool(value)) => Some(i64::from(*value)),
            (_, Argument::Variable { name, .. }) => lookup(name),
            (Operation::Where, _) => return if source(0)? != 0 { source(1) } else { source(2) },
            (Operation::Bind, _) => return source(0),
            (Operation::MulAcc, _) => {
                let product = source(0)?.checked_mul(source(1)?);
                let addend = source(2)?;
                product.and_then(|product| product.checked_add(addend))
            }
            (_, Argument::None) if node.sources.len() == 1 => unary(node, source(0)?),
            (_, Argument::None) => binary(node.operation, source(0)?, source(1)?),
        };
        value.ok_or(Fault { node: index })
    }

    #[cold]
    fn explain(&self, fault: Fault) -> EvalError {
        let node = &self.nodes[fault.node];
        match &node.argument {
            Argument::Variable { name, .. } => {
                EvalError::UnknownVariable { name: name.to_string() }
            }
            _ => EvalError::Overflow { operation: node.operation.name() },
        }
    }

    #[must_use]
    pub fn into_owned(self) -> Expression<'static> {
        let own = |node: Node<'_>| Node {
            operation: node.operation,
            data_type: node.data_type,
            argument: match node.argument {
                Argument::Bool(value) => Argument::Bool(value),
                Argument::Int(value) => Argument::Int(value),
                Argument::None => Argument::None,
                Argument::Variable { name, min, max } => {
                    Argument::Variable { name: Cow::Owned(name.into_owned()), min, max }
                }
            },
            sources: node.sources,
        };
        Expression { nodes: self.nodes.into_iter().map(own).collect(), sources: self.sources }
    }

    /// Names of the variables in it, each as often as it is written.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter_map(|node| match &node.argument {
            Argument::Variable { name, .. } => Some(&**name),
            _ => None,
        })
    }
}

fn unary(node: &Node<'_>, x: i64) -> Option<i64> {
    match node.operation {
        Operation::Cast => node.data_type.hold(x),
        Operation::Neg => x.checked_neg(),
        // An integer is its own whole part.
        _ => Some(x),
    }
}

fn binary(operation: Operation, x: i64, y: i64) -> Option<i64> {
    let divided = || if y == 0 { Some(0) } else { x.checked_div(y) };
    match operation {
        Operation::Add => x.checked_add(y),
        Operation::And => Some(x & y),
        Operation::CmpEq => Some(i64::from(x == y)),
        Operation::CmpLt => Some(i64::from(x < y)),
        Operation::CmpNe => Some(i64::from(x != y)),
        Operation::Idiv => divided(),
        Operation::Max => Some(x.max(y)),
        Operation::Mod if y == -1 => Some(0),
        Operation::Mod => Some(x - divided()? * y),
        Operation::Mul => x.checked_mul(y),
        Operation::Or => Some(x | y),
        Operation::Shl if x == 0 && y >= 0 => Some(0),
        Operation::Shl => {
            let bits = u32::try_from(y).ok().filter(|&bits| bits < 64)?;
            let shifted = x.checked_shl(bits)?;
            (shifted >> bits == x).then_some(shifted)
        }
        Operation::Shr => Some(x >> u64::try_from(y).ok()?.min(63)),
        Operation::Sub => x.checked_sub(y),
        Operation::Xor => Some(x ^ y),
        // All others take another number of sources, which the reader has checked.
        _ => None,
    }
}

/// Reads a data type: `dtypes.int`.
pub(crate) fn read_data_type(value: Value<'_, '_>) -> Result<DataType, WireError> {
    let name = value.as_name().ok_or_else(|| value.mismatch("a data type"))?;
    name.strip_prefix("dtypes.")
        .and_then(DataType::from_name)
        .ok_or_else(|| value.error(WireErrorKind::UnknownDataType { found: value.quote() }))
}

fn read_operation(value: Value<'_, '_>) -> Result<Operation, WireError> {
    let name = value.as_name().ok_or_else(|| value.mismatch("an operation"))?;
    match name.strip_prefix("Ops.").map(Operation::from_name) {
        Some(NamedOperation::Known(operation)) => Ok(operation),
        Some(NamedOperation::NotOnIntegers) => {
            let op = name.trim_start_matches("Ops.").to_owned();
            Err(value.error(WireErrorKind::NotAnIntegerOperation { op }))
        }
        Some(NamedOperation::Unknown) | None => {
            Err(value.error(WireErrorKind::UnknownOperation { found: value.quote() }))
        }
    }
}

fn read_argument<'t>(
    operation: Operation,
    value: Option<Value<'_, 't>>,
) -> Result<Argument<'t>, WireError> {
    match (operation, value) {
        (Operation::DefineVar, Some(value)) => {
            let expected = "a tuple of name, least and greatest value";
            let mut items = value.sequence(expected)?;
            let (Some(name), Some(min), Some(max), None) =
                (items.next(), items.next(), items.next(), items.next())
            else {
                return Err(value.mismatch(expected));
            };
            let (min, max) = (i64::read(min)?, i64::read(max)?);
            Ok(Argument::Variable { name: Cow::read(name)?, min, max })
        }
        (Operation::Const, Some(value)) => match value.as_bool() {
            Some(bool) => Ok(Argument::Bool(bool)),
            None => i64::read(value).map(Argument::Int),
        },
        (_, None) => Ok(Argument::None),
        (_, Some(value)) if value.is_none() => Ok(Argument::None),
        (_, Some(value)) => Err(value.mismatch("None")),
    }
}

/// A `UOp` call whose sources are still being read.
struct Pending<'a, 't> {
    call: Value<'a, 't>,
    operation: Operation,
    data_type: DataType,
    argument: Argument<'t>,
    left: Option<Items<'a, 't>>,
    /// Where its sources begin in `Reader::ready`.
    ready_from: usize,
    /// The name bound to it.
    name: Option<&'t str>,
}

struct Reader<'a, 't> {
    expression: Expression<'t>,
    pending: Vec<Pending<'a, 't>>,
    /// Nodes that are read and wait for their parents.
    ready: Vec<u32>,
    names: HashMap<&'t str, u32>,
}

impl<'a, 't> Reader<'a, 't> {
    fn read(root: Value<'a, 't>) -> Result<Expression<'t>, WireError> {
        let mut reader = Reader {
            expression: Expression { nodes: Vec::new(), sources: Vec::new() },
            pending: Vec::new(),
            ready: Vec::new(),
            names: HashMap::new(),
        };
        reader.start(root)?;
        while let Some(node) = reader.pending.last_mut() {
            match node.left.as_mut().and_then(Iterator::next) {
                Some(source) => reader.start(source)?,
                None => reader.finish()?,
            }
        }
        Ok(reader.expression)
    }

    /// Takes a reference, or begins a call.
    fn start(&mut self, value: Value<'a, 't>) -> Result<(), WireError> {
        let (name, value) = match value.as_binding() {
            Some((name, value)) => (Some(name), value),
            None => (None, value),
        };
        if let Some(reference) = value.as_name() {
            let unbound = || value.error(WireErrorKind::UnboundName { found: value.quote() });
            self.ready.push(*self.names.get(reference).ok_or_else(unbound)?);
            return Ok(());
        }
        let Some((UOP_NAME, arguments)) = value.as_call() else {
            return Err(value.mismatch("a UOp"));
        };
        let fields = Fields::new(UOP, value, arguments)?;
        let operation = fields.value(0).ok_or_else(|| value.mismatch("a UOp with an operation"))?;
        let operation = read_operation(operation).map_err(|error| fields.locate(0, error))?;
        let data_type = match fields.value(1) {
            Some(given) => read_data_type(given).map_err(|error| fields.locate(1, error))?,
            None => DataType::VOID,
        };
        let left = match fields.value(2) {
            Some(given) => {
                Some(given.sequence("a tuple").map_err(|error| fields.locate(2, error))?)
            }
            None => None,
        };
        let argument =
            read_argument(operation, fields.value(3)).map_err(|error| fields.locate(3, error))?;
        if let Some(tag) = fields.value(4).filter(|tag| !tag.is_none()) {
            return Err(fields.locate(4, tag.mismatch("None")));
        }
        let ready_from = self.ready.len();
        let call = value;
        self.pending.push(Pending { call, operation, data_type, argument, left, ready_from, name });
        Ok(())
    }

    /// Ends the innermost call.
    fn finish(&mut self) -> Result<(), WireError> {
        let Some(pending) = self.pending.pop() else { return Ok(()) };
        let Pending { call, operation, data_type, argument, ready_from, name, .. } = pending;
        let (expected, found) = (operation.sources(), self.ready.len() - ready_from);
        if expected != found {
            let op = operation.name();
            return Err(call.error(WireErrorKind::WrongArity { op, expected, found }));
        }
        if matches!(operation, Operation::Const | Operation::DefineVar)
            && argument == Argument::None
        {
            return Err(call.mismatch("an argument"));
        }
        let narrow =
            |length: usize| u32::try_from(length).expect("an expression is shorter than its text");
        let sources = &mut self.expression.sources;
        let from = narrow(sources.len());
        sources.extend(self.ready.drain(ready_from..));
        let sources = from..narrow(sources.len());
        let index = narrow(self.expression.nodes.len());
        self.expression.nodes.push(Node { operation, data_type, argument, sources });
        if let Some(name) = name {
            self.names.insert(name, index);
        }
        // The root waits for nobody.
        if !self.pending.is_empty() {
            self.ready.push(index);
        }
        Ok(())
    }
}

const UOP_NAME: &str = UOP.name;

impl<'t> Part<'t> for Expression<'t> {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        Reader::read(value)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        super::symbolic_repr::write(self, f)
    }
}

impl<'t> Part<'t> for Integer<'t> {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        if value.is_int() {
            return i64::read(value).map(Integer::Fixed);
        }
        match value.as_call().is_some() || value.as_binding().is_some() {
            true => Expression::read(value).map(Integer::Expression),
            false => Err(value.mismatch("an int or a UOp")),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Integer::Expression(expression) => expression.write(f),
            Integer::Fixed(value) => value.write(f),
        }
    }
}

impl<'t> Part<'t> for Variable<'t> {
    fn read(value: Value<'_, 't>) -> Result<Self, WireError> {
        let mut expression = Expression::read(value)?;
        match expression.nodes.pop() {
            Some(Node { argument: Argument::Variable { name, min, max }, data_type, .. }) => {
                Ok(Variable { name, data_type, min, max })
            }
            _ => Err(value.mismatch("a UOp with Ops.DEFINE_VAR")),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Variable { name, data_type, min, max } = self;
        let (operation, name) = (Operation::DefineVar.name(), repr::Str(name));
        let data_type = data_type.name();
        write!(f, "UOp(Ops.{operation}, dtypes.{data_type}, arg=({name}, {min}, {max}), src=())")
    }
}

impl fmt::Display for Expression<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)
    }
}

impl fmt::Display for Integer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)
    }
}

impl fmt::Display for Variable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f)
    }
}
