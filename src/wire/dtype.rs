//! Names of tinygrad's data types and operations, as of 0.11.0.
//!
//! A name that is not listed here is refused.

/// A scalar data type, under the name it was given: `int` and `int32` are one type with two names,
/// and each is printed as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataType {
    name: &'static str,
    class: Class,
}

/// What values a data type has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Bool,
    Float,
    Signed { bits: u32 },
    Unsigned { bits: u32 },
    Void,
}

const fn signed(name: &'static str, bits: u32) -> DataType {
    DataType { name, class: Class::Signed { bits } }
}

const fn unsigned(name: &'static str, bits: u32) -> DataType {
    DataType { name, class: Class::Unsigned { bits } }
}

const fn float(name: &'static str) -> DataType {
    DataType { name, class: Class::Float }
}

/// The usual one first.
static DATA_TYPES: [DataType; 27] = [
    signed("int", 32),
    DataType { name: "bool", class: Class::Bool },
    DataType::VOID,
    signed("int8", 8),
    signed("char", 8),
    signed("int16", 16),
    signed("short", 16),
    signed("int32", 32),
    signed("int64", 64),
    signed("long", 64),
    unsigned("uint8", 8),
    unsigned("uchar", 8),
    unsigned("uint16", 16),
    unsigned("ushort", 16),
    unsigned("uint32", 32),
    unsigned("uint", 32),
    unsigned("uint64", 64),
    unsigned("ulong", 64),
    float("fp8e4m3"),
    float("fp8e5m2"),
    float("float16"),
    float("half"),
    float("bfloat16"),
    float("float32"),
    float("float"),
    float("float64"),
    float("double"),
];

impl DataType {
    /// The type of a node that was given none.
    pub(crate) const VOID: DataType = DataType { name: "void", class: Class::Void };

    pub(crate) fn from_name(name: &str) -> Option<DataType> {
        DATA_TYPES.iter().find(|known| known.name == name).copied()
    }

    /// The name it was given, without `dtypes.`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.name
    }

    /// `value` as this type holds it. `None` where it does not fit, or the type holds no integers.
    pub(crate) fn hold(self, value: i64) -> Option<i64> {
        match self.class {
            Class::Bool => Some(i64::from(value != 0)),
            Class::Signed { bits } => {
                let spare = 64 - bits;
                (value << spare >> spare == value).then_some(value)
            }
            Class::Unsigned { bits } => {
                (value >= 0 && (bits == 64 || value >> bits == 0)).then_some(value)
            }
            Class::Float | Class::Void => None,
        }
    }
}

/// An operation of an integer expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Add,
    And,
    Bind,
    Cast,
    CmpEq,
    CmpLt,
    CmpNe,
    Const,
    DefineVar,
    Idiv,
    Max,
    Mod,
    Mul,
    MulAcc,
    Neg,
    Or,
    Shl,
    Shr,
    Sub,
    Trunc,
    Where,
    Xor,
}

/// Each operation that has a value on integers, its name, and how many sources it takes.
static OPERATIONS: [(Operation, &str, usize); 22] = [
    (Operation::DefineVar, "DEFINE_VAR", 0),
    (Operation::Const, "CONST", 0),
    (Operation::Add, "ADD", 2),
    (Operation::Mul, "MUL", 2),
    (Operation::Idiv, "IDIV", 2),
    (Operation::Mod, "MOD", 2),
    (Operation::Max, "MAX", 2),
    (Operation::And, "AND", 2),
    (Operation::Bind, "BIND", 2),
    (Operation::Cast, "CAST", 1),
    (Operation::CmpEq, "CMPEQ", 2),
    (Operation::CmpLt, "CMPLT", 2),
    (Operation::CmpNe, "CMPNE", 2),
    (Operation::MulAcc, "MULACC", 3),
    (Operation::Neg, "NEG", 1),
    (Operation::Or, "OR", 2),
    (Operation::Shl, "SHL", 2),
    (Operation::Shr, "SHR", 2),
    (Operation::Sub, "SUB", 2),
    (Operation::Trunc, "TRUNC", 1),
    (Operation::Where, "WHERE", 3),
    (Operation::Xor, "XOR", 2),
];

/// The operations that have none.
static OTHER_OPERATIONS: &str = "\
    ALLREDUCE ASSIGN BARRIER BITCAST BLOCK BLOCKEND BLOCKFINAL BLOCKSTART BUFFER BUFFERIZE \
    BUFFER_VIEW CAT CHILD CHILDREN CONTIGUOUS CONTIGUOUS_BACKWARD CONTRACT COPY CUSTOM CUSTOMI \
    DEFINE_GLOBAL DEFINE_LOCAL DEFINE_REG DETACH DEVICE ENDIF ENDRANGE EXP2 EXPAND FDIV FLIP FUSE \
    GEP IF INDEX KERNEL LOAD LOG2 MSELECT MSTACK MULTI NOOP PAD PERMUTE POW PRECAST PTRCAT RANGE \
    RECIP REDUCE REDUCE_AXIS RESHAPE REWRITE_ERROR SHRINK SIN SINK SPECIAL SQRT STORE THREEFRY \
    UNIQUE UNROLL VALID VCONST VECTORIZE VIEW WMMA";

/// What a name of tinygrad's `Ops` is here.
pub(crate) enum NamedOperation {
    Known(Operation),
    /// It exists, and has no value on integers.
    NotOnIntegers,
    Unknown,
}

impl Operation {
    pub(crate) fn from_name(name: &str) -> NamedOperation {
        match OPERATIONS.iter().find(|known| known.1 == name) {
            Some(known) => NamedOperation::Known(known.0),
            None if OTHER_OPERATIONS.split(' ').any(|other| other == name) => {
                NamedOperation::NotOnIntegers
            }
            None => NamedOperation::Unknown,
        }
    }

    /// The name on the wire, without `Ops.`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().map_or("", |known| known.1)
    }

    /// How many sources it takes.
    #[must_use]
    pub fn sources(self) -> usize {
        self.entry().map_or(0, |known| known.2)
    }

    fn entry(self) -> Option<&'static (Operation, &'static str, usize)> {
        OPERATIONS.iter().find(|known| known.0 == self)
    }
}

#[cfg(test)]
mod tests {
    use super::{DATA_TYPES, DataType, NamedOperation, OPERATIONS, Operation};

    #[test]
    fn operations_are_found_by_their_names() {
        for (operation, name, sources) in OPERATIONS {
            assert!(matches!(Operation::from_name(name), NamedOperation::Known(found)
                if found == operation && found.name() == name && found.sources() == sources));
        }
        assert!(matches!(Operation::from_name("WMMA"), NamedOperation::NotOnIntegers));
        assert!(matches!(Operation::from_name("add"), NamedOperation::Unknown));
        assert!(matches!(Operation::from_name(""), NamedOperation::Unknown));
    }

    #[test]
    fn data_types_hold_what_fits() {
        let hold = |name: &str, value| DataType::from_name(name).unwrap().hold(value);
        assert_eq!(hold("int8", 127), Some(127));
        assert_eq!(hold("int8", 128), None);
        assert_eq!(hold("int8", -129), None);
        assert_eq!(hold("uint", -1), None);
        assert_eq!(hold("uint32", 1 << 32), None);
        assert_eq!(hold("ulong", i64::MAX), Some(i64::MAX));
        assert_eq!(hold("long", i64::MIN), Some(i64::MIN));
        assert_eq!(hold("bool", -7), Some(1));
        assert_eq!(hold("half", 1), None);
        for known in DATA_TYPES {
            assert_eq!(DataType::from_name(known.name()), Some(known));
        }
    }
}
