//! Texts that nobody's client sends, and what the module says to them.

use std::fmt::Write as _;
use std::mem::discriminant;

use super::command::{
    BufferAlloc, BufferSpec, GraphItem, IbConnect, Image, ProgramExec, Texel, VariableKey,
};
use super::symbolic::{EvalError, Integer};
use super::{
    BufferNumber, Command, Commands, Parsing, Request, SessionKey, Stored, Tape, WireError,
    WireErrorKind, parse_batch, write_batch,
};
use crate::config::WireLimits;

const KEY: &str = "SessionKey(host='127.0.0.1:6667', idx=0, nonce='00ff')";

fn limits() -> WireLimits {
    WireLimits::default()
}

fn parse_one(text: &str) -> Result<Request<'_>, WireError> {
    parse_batch(text.as_bytes(), &limits()).map(|mut requests| requests.pop().unwrap())
}

/// Reads `[COMMAND(session=KEY, REST)]`, and says what is wrong.
#[track_caller]
fn check_error(command: &str, rest: &str, expected: &str) {
    let text = format!("[{command}(session={KEY}, {rest})]");
    let error = parse_one(&text).unwrap_err();
    let at = error.at() - (text.len() - rest.len() - 2) as u64;
    let message = error.to_string();
    let message = message.split_once(": ").unwrap().1;
    assert_eq!(format!("{at}: {message}"), expected, "{text}");
}

#[test]
fn batch_that_is_no_list_of_commands_is_refused() {
    for (text, expected) in [
        ("", "byte 0: expected a list of commands, found the end of the text"),
        ("GetProperties()", "byte 0: expected a list of commands, found `GetProperties`"),
        ("[", "byte 1: command 0: expected a value, found the end of the text"),
        ("[,]", "byte 1: command 0: expected a value, found `,`"),
        ("[1]", "byte 1: command 0: expected a command, found `1`"),
        ("[] []", "byte 3: expected the end of the text, found `[`"),
        (
            "[Wait(session=SessionKey('', 0, ''), event=0) 3]",
            "byte 46: expected `,` or `]` after a command, found `3`",
        ),
        ("[exec('x')]", "byte 1: command 0: `exec` is not a command"),
        ("[BufferSpec()]", "byte 1: command 0: `BufferSpec` is not a command"),
    ] {
        assert_eq!(parse_batch(text.as_bytes(), &limits()).unwrap_err().to_string(), expected);
    }
    assert_eq!(parse_batch(b" [ ] \n", &limits()), Ok(Vec::new()));
}

/// A command, its fields after the session, and the error, with its place in these fields.
const FIELD_ERRORS: [(&str, &str, &str); 12] = [
    (
        "CopyOut",
        "buffer_num='3'",
        "11: command 0, CopyOut: CopyOut.buffer_num: expected an int from 0 to 2^64-1, \
         found `'3'`",
    ),
    (
        "CopyOut",
        "buffer_num=-1",
        "11: command 0, CopyOut: CopyOut.buffer_num: expected an int from 0 to 2^64-1, \
         found minus `1`, which is out of range",
    ),
    (
        "CopyOut",
        "buffer_num=18446744073709551616",
        "11: command 0, CopyOut: CopyOut.buffer_num: expected an int from 0 to 2^64-1, \
         found `18446744073709551616`, which is out of range",
    ),
    (
        "CopyOut",
        "buffer_num=True",
        "11: command 0, CopyOut: CopyOut.buffer_num: expected an int from 0 to 2^64-1, \
         found `True`",
    ),
    (
        "CopyOut",
        "buffer_num=3, buffer_num=4",
        "14: command 0, CopyOut: CopyOut has its field buffer_num twice",
    ),
    ("CopyOut", "buffer_number=3", "0: command 0, CopyOut: CopyOut has no field `buffer_number`"),
    (
        "CopyIn",
        "buffer_num=3, datahash='00'",
        "23: command 0, CopyIn: CopyIn.datahash: expected 64 hexadecimal digits, \
         found `'00'`",
    ),
    (
        "BatchTransfer",
        "sbuffer_nums=[(SessionKey('a', -1, 'b'), 1)], dbuffer_nums=[]",
        "31: command 0, BatchTransfer: SessionKey.idx: expected an int from 0 to 2^64-1, \
         found minus `1`, which is out of range",
    ),
    (
        "BatchTransfer",
        "sbuffer_nums=[(SessionKey('a', 1, 'b'),)], dbuffer_nums=[]",
        "14: command 0, BatchTransfer: BatchTransfer.sbuffer_nums: expected a pair of \
         SessionKey and buffer number, found a tuple",
    ),
    (
        "IBConnect",
        "host='h', gid=b'too short', qp_num=1",
        "14: command 0, IBConnect: IBConnect.gid: expected 16 bytes, \
         found `b'too short'`",
    ),
    (
        "ProgramFree",
        "name='a\\0b', datahash=''",
        "5: command 0, ProgramFree: ProgramFree.name: expected a str without NUL, \
         found `'a\\0b'`",
    ),
    (
        "ProgramFree",
        "name='a\\ud800b', datahash=''",
        "7: command 0, ProgramFree: ProgramFree.name: bad escape in a literal: not a Unicode \
         scalar value (a lone surrogate, or too large)",
    ),
];

#[test]
fn error_names_command_field_and_place() {
    for (command, rest, expected) in FIELD_ERRORS {
        check_error(command, rest, expected);
    }
}

#[test]
fn positional_arguments_come_in_the_order_of_the_fields() {
    let text = format!("[BufferAlloc(7, 16, BufferSpec(), session={KEY})]");
    let alloc = BufferAlloc { buffer: BufferNumber(7), size: 16, options: BufferSpec::default() };
    assert_eq!(parse_one(&text).unwrap().command, Command::BufferAlloc(alloc.clone()));
    let text = format!("[BufferAlloc(7, options=BufferSpec(), session={KEY}, size=16)]");
    assert_eq!(parse_one(&text).unwrap().command, Command::BufferAlloc(alloc));
    let error = |text: &str| parse_one(text).unwrap_err().kind().clone();
    assert_eq!(
        error(&format!("[CopyOut(1, {KEY})]")),
        WireErrorKind::TooManyPositional { record: "CopyOut", max: 1 }
    );
    assert_eq!(
        error("[CopyOut(1)]"),
        WireErrorKind::MissingField { record: "CopyOut", field: "session" }
    );
    assert_eq!(
        error(&format!("[CopyOut(1, session={KEY}, buffer_num=1)]")),
        WireErrorKind::RepeatedField { record: "CopyOut", field: "buffer_num" }
    );
    assert!(matches!(error(&format!("[CopyOut(session={KEY}, 1)]")), WireErrorKind::Syntax { .. }));
}

#[test]
fn program_exec_takes_one_to_three_sizes() {
    let exec = |sizes: &str| {
        let digest = "ab".repeat(32);
        let text = format!(
            "[ProgramExec(session={KEY}, name='f', datahash='{digest}', bufs=[1, 2,], vals=(-1,), \
             global_size={sizes}, local_size=None, wait=True)]"
        );
        let Command::ProgramExec(exec) = parse_one(&text)?.command else { panic!() };
        let ProgramExec { buffers, values, local, wait, global, .. } = *exec;
        assert_eq!(&buffers[..], [BufferNumber(1), BufferNumber(2)]);
        assert_eq!((&values[..], local, wait), (&[-1][..], None, true));
        Ok::<_, WireError>(global.map(|global| global.padded()))
    };
    assert_eq!(exec("None"), Ok(None));
    assert_eq!(exec("(4,)"), Ok(Some([4, 1, 1])));
    assert_eq!(exec("(4, -5, 6)"), Ok(Some([4, -5, 6])));
    for bad in ["()", "(1, 2, 3, 4)", "4", "(1, 'a')", "(1, None)"] {
        assert!(exec(bad).is_err(), "{bad}");
    }
}

#[test]
fn buffer_spec_keeps_what_the_engine_has_to_refuse() {
    let spec = |inside: &str| {
        let text = format!("[BufferAlloc(1, 4, BufferSpec({inside}), session={KEY})]");
        match parse_one(&text)?.command {
            Command::BufferAlloc(alloc) => Ok(alloc.options),
            _ => unreachable!(),
        }
    };
    assert_eq!(spec("external_ptr=-5").unwrap().external_ptr, Some(-5));
    assert_eq!(spec("external_ptr=0xffffffffffffffff").unwrap().external_ptr, Some((1 << 64) - 1));
    let image = Some(Image { texel: Texel::Half, shape: [2, 3, 4] });
    assert_eq!(spec("image=dtypes.imageh((2, 3, 4))").unwrap().image, image);
    for bad in ["image=dtypes.imageh((2, 3))", "image=dtypes.int", "image=f((1, 2, 3))"] {
        assert!(spec(bad).is_err(), "{bad}");
    }
    let error: WireError = spec("image=dtypes.image2((2, 3, 4))").unwrap_err();
    assert!(matches!(error.kind(), WireErrorKind::UnknownDataType { .. }));
}

#[test]
fn gid_of_any_bytes_is_read() {
    let text = format!(r#"[IBConnect('h', b"\xfe\x80'\n\t\\" b'0123456789', 5, session={KEY})]"#);
    let Command::IbConnect(IbConnect { gid, queue_pair, .. }) = parse_one(&text).unwrap().command
    else {
        panic!()
    };
    assert_eq!((&gid, queue_pair), (b"\xfe\x80'\n\t\\0123456789", 5));
}

/// The launch size `size`, of a graph of one kernel.
fn size(size: &str) -> Result<Integer<'static>, WireError> {
    let digest = "ab".repeat(32);
    let text = format!(
        "[GraphAlloc(0, (GraphComputeItem({KEY}, 'f', '{digest}', (), (), {{'i': 1}}, (), (), \
         ({size},), None), Transfer(1, {KEY}, 2, session={KEY})), (), \
         {{UOp(Ops.DEFINE_VAR, dtypes.int, (), ('i', 1, 10)): 3, 'j': -4, 'j': 5}}, \
         session={KEY})]"
    );
    let Command::GraphAlloc(graph) = parse_one(&text)?.command else { panic!() };
    assert_eq!(graph.values.lookup("i"), Some(3));
    assert_eq!(graph.values.lookup("j"), Some(5));
    assert!(matches!(graph.values.0[0].0, VariableKey::Variable(_)));
    assert!(matches!(graph.items[1], GraphItem::Transfer { .. }));
    let GraphItem::Compute(item) = graph.items.into_vec().swap_remove(0) else { panic!() };
    assert_eq!(item.fixed.lookup("i"), Some(1));
    Ok(item.global.unwrap().into_owned().as_slice()[0].clone())
}

fn eval(text: &str) -> Result<i64, EvalError> {
    let lookup = |name: &str| match name {
        "i" => Some(3),
        "min" => Some(i64::MIN),
        _ => None,
    };
    size(text).unwrap().eval(&lookup)
}

/// `Ops.op` of constants, or of what is given as text.
fn op(op: &str, sources: &[&str]) -> String {
    let mut text = format!("UOp(Ops.{op}, dtypes.int, arg=None, src=(");
    for source in sources {
        match source.parse::<i64>() {
            Ok(value) => write!(text, "UOp(Ops.CONST, dtypes.int, arg={value}, src=()), ").unwrap(),
            Err(_) => write!(text, "{source}, ").unwrap(),
        }
    }
    text + "))"
}

fn variable(name: &str) -> String {
    format!("UOp(Ops.DEFINE_VAR, dtypes.int, arg=('{name}', 0, 9), src=())")
}

#[test]
fn expressions_are_computed_as_the_client_does() {
    let min = variable("min");
    for (name, sources, expected) in [
        ("ADD", vec!["2", "-3"], Some(-1)),
        ("ADD", vec![&min, "-1"], None),
        ("SUB", vec![&min, "1"], None),
        ("MUL", vec!["-4", "5"], Some(-20)),
        ("MUL", vec![&min, "-1"], None),
        ("IDIV", vec!["-7", "2"], Some(-3)),
        ("IDIV", vec!["7", "-2"], Some(-3)),
        ("IDIV", vec!["7", "0"], Some(0)),
        ("IDIV", vec![&min, "-1"], None),
        ("MOD", vec!["-7", "2"], Some(-1)),
        ("MOD", vec!["7", "-2"], Some(1)),
        ("MOD", vec!["7", "0"], Some(7)),
        ("MOD", vec![&min, "-1"], Some(0)),
        ("MAX", vec!["-7", "2"], Some(2)),
        ("NEG", vec!["5"], Some(-5)),
        ("NEG", vec![&min], None),
        ("CMPLT", vec!["1", "2"], Some(1)),
        ("CMPLT", vec!["2", "2"], Some(0)),
        ("CMPNE", vec!["1", "2"], Some(1)),
        ("CMPEQ", vec!["1", "2"], Some(0)),
        ("AND", vec!["6", "3"], Some(2)),
        ("OR", vec!["6", "3"], Some(7)),
        ("XOR", vec!["6", "3"], Some(5)),
        ("SHL", vec!["3", "4"], Some(48)),
        ("SHL", vec!["-1", "63"], Some(i64::MIN)),
        ("SHL", vec!["1", "63"], None),
        ("SHL", vec!["1", "64"], None),
        ("SHL", vec!["0", "99"], Some(0)),
        ("SHL", vec!["1", "-1"], None),
        ("SHR", vec!["-5", "1"], Some(-3)),
        ("SHR", vec!["-5", "99"], Some(-1)),
        ("SHR", vec!["5", "-1"], None),
        ("MULACC", vec!["2", "3", "4"], Some(10)),
        ("WHERE", vec!["2", "3", "4"], Some(3)),
        ("WHERE", vec!["0", "3", "4"], Some(4)),
        ("TRUNC", vec!["3"], Some(3)),
        ("CAST", vec!["2147483647"], Some(i64::from(i32::MAX))),
        ("CAST", vec!["2147483648"], None),
    ] {
        let result = eval(&op(name, &sources));
        let expected = expected.ok_or_else(|| {
            let operation = super::Operation::from_name(name);
            let super::dtype::NamedOperation::Known(operation) = operation else { panic!() };
            EvalError::Overflow { operation: operation.name() }
        });
        assert_eq!(result, expected, "{name} {sources:?}");
    }
}

#[test]
fn expression_fails_only_on_the_side_that_is_chosen() {
    let overflow = op("NEG", &[&variable("min")]);
    assert_eq!(eval(&op("WHERE", &["1", "5", &overflow])), Ok(5));
    assert!(eval(&op("WHERE", &["0", "5", &overflow])).is_err());
    let unknown = EvalError::UnknownVariable { name: "k".to_owned() };
    assert_eq!(eval(&op("ADD", &["1", &variable("k")])), Err(unknown));
    let bind = op("BIND", &[&variable("i"), "7"]);
    assert_eq!(eval(&bind), Ok(3));
}

#[test]
fn expression_with_shared_nodes_has_the_size_of_its_text() {
    // Written out, it would have 2^60 nodes.
    let mut text = variable("i");
    for level in 0..60 {
        text = op("MAX", &[&format!("x{level}:={text}"), &format!("x{level}")]);
    }
    assert_eq!(eval(&text), Ok(3));
    let printed = size(&text).unwrap().to_string();
    assert!(printed.len() < 20_000 && printed.contains("x59:="), "{printed}");
    assert_eq!(size(&printed).unwrap().to_string(), printed);
}

#[test]
fn expression_that_makes_no_sense_is_refused() {
    for (text, expected) in [
        ("UOp(Ops.SIN, dtypes.float)", "Ops.SIN has no place in an integer expression"),
        ("UOp(Ops.NOPE)", "`Ops.NOPE` is not an operation"),
        ("UOp(eval)", "`eval` is not an operation"),
        ("UOp(Ops.CONST, dtypes.fields)", "`dtypes.fields` is not a data type"),
        ("UOp(Ops.NEG, dtypes.int)", "Ops.NEG takes 1 sources, found 0"),
        ("UOp(Ops.NEG, dtypes.int, (x2,))", "nothing is bound to the name `x2`"),
    ] {
        assert_eq!(size(text).unwrap_err().kind().to_string(), expected);
    }
    for text in [
        "UOp(Ops.CONST, dtypes.int, arg=1.5)",
        "UOp(Ops.CONST, dtypes.int, arg=9223372036854775808)",
        "UOp(Ops.CONST, dtypes.int)",
        "UOp(Ops.ADD, dtypes.int, arg=1, src=(x:=UOp(Ops.CONST, arg=1), x))",
        "UOp(Ops.NEG, dtypes.int, src=(1,))",
        "UOp(Ops.DEFINE_VAR, dtypes.int, arg=('i', 1))",
        "UOp(Ops.CONST, dtypes.int, arg=1, tag=1)",
        "UOp(dtype=dtypes.int)",
        "f(1)",
        "x0",
        "None",
        "1.0",
        "(x0:=x0)",
    ] {
        assert!(size(text).is_err(), "{text}");
    }
}

#[test]
fn name_bound_in_one_tree_is_unknown_in_the_next() {
    let bound = format!("(x0:={})", variable("i"));
    assert!(size(&bound).is_ok());
    assert!(size(&format!("{bound}, x0")).is_err());
}

/// A text that must be refused for its size.
#[track_caller]
fn check_refused(text: &str, expected: &WireErrorKind) {
    let limits =
        WireLimits { items_max: 1000, nodes_max: 3000, text_bytes_max: 20 << 20, ..limits() };
    assert_eq!(parse_batch(text.as_bytes(), &limits).unwrap_err().kind(), expected);
    assert!(Tape::new().parse(text.as_bytes(), &limits).is_err());
}

#[test]
fn text_of_hostile_size_is_refused() {
    let million = 1_000_000;
    let deep = WireErrorKind::TooDeep { max: 256 };
    for open in ["(", "[", "{", "f(", "f(a=", "(a:=", "-(", "{1: ", "[(", "UOp(src=("] {
        check_refused(&format!("[{}", open.repeat(million)), &deep);
    }
    let digits = WireErrorKind::TooManyDigits { max: 64 };
    for number in ["1", "0x1", "0.1", "1e1", "0", "0b0_"] {
        check_refused(&format!("[{number}{}]", "1".repeat(million)), &digits);
    }
    let items = WireErrorKind::TooManyItems { max: 1000 };
    check_refused(&format!("[({})]", "1,".repeat(million)), &items);
    check_refused(&format!("[f({})]", "a=1,".repeat(million)), &items);
    let nodes = WireErrorKind::TooManyNodes { max: 3000 };
    check_refused(
        &format!("[({})]", format!("({}),", "1,".repeat(900)).repeat(million / 900)),
        &nodes,
    );
    check_refused(&format!("[{}]", "'' ".repeat(million)), &nodes);
    let long = WireErrorKind::TextTooLong { bytes: (20 << 20) + 1, max: 20 << 20 };
    check_refused(&"[".repeat((20 << 20) + 1), &long);
}

#[test]
fn batch_of_too_many_commands_is_refused() {
    let text = format!("[{}]", format!("SessionFree(session={KEY}),").repeat(11));
    let limits = WireLimits { commands_max: 10, ..limits() };
    let error = parse_batch(text.as_bytes(), &limits).unwrap_err();
    assert_eq!(error.kind(), &WireErrorKind::TooManyCommands { max: 10 });
}

#[test]
fn commands_are_printed_as_they_were_read() {
    let digest = "ab".repeat(32);
    let text = format!(
        "[GetProperties(session={KEY}), SessionFree(session={KEY}), \
         IBConnect(session={KEY}, host=\"it's\", gid=b'0123456789\\x00\\xff\\n\"\\'\\\\', \
         qp_num=18446744073709551615), \
         BufferIOVAS(session={KEY}, buffer_nums=[({KEY}, 1), ({KEY}, 2)]), \
         BlobLanding(session={KEY}, blobs=[('{digest}', 1), ('{digest}', 4294967296)]), \
         BufferAlloc(session={KEY}, buffer_num=1, size=2, \
         options=BufferSpec(image=dtypes.imagef((1, 2, 4)), uncached=True, cpu_access=True, \
         host=True, nolru=True, external_ptr=140000000000000)), \
         ProgramExec(session={KEY}, name='caf\u{e9}\\u200b', datahash='{digest}', \
         bufs=(1,), vals=(), global_size=(1,), local_size=(1, 2), wait=True), \
         GraphExec(session={KEY}, graph_num=0, bufs=(({KEY}, 1),), var_vals={{'i': -1}}, \
         wait=True)]"
    );
    let requests = parse_batch(text.as_bytes(), &limits()).unwrap();
    let mut printed = String::new();
    write_batch(&mut printed, &requests).unwrap();
    assert_eq!(printed, text);
    assert_eq!(requests[0].command.to_string(), "GetProperties()");
}

/// The stock client's spelling is read in two ways: see `record.rs`. A space that the client does
/// not write leaves only one of them. The command after the mutated one shows what the attempt at
/// the other has left.
#[test]
fn both_ways_of_reading_agree_on_mutated_commands() {
    let digest = "0123456789abcdef".repeat(4);
    let commands = [
        format!(
            "ProgramExec(session={KEY}, name='f', datahash='{digest}', bufs=(1,), vals=(-1, 20), \
                 global_size=(1, 2, 3), local_size=None, wait=False)"
        ),
        format!(
            "BufferAlloc(session={KEY}, buffer_num=0, size=10, options=BufferSpec(image=None, \
                 uncached=False, cpu_access=True, host=False, nolru=False, external_ptr=None))"
        ),
        format!("Transfer(session={KEY}, buffer_num=1, dsession={KEY}, dbuffer_num=12)"),
        format!(
            "GraphExec(session={KEY}, graph_num=0, bufs=(({KEY}, 3), ({KEY}, 4)), var_vals={{}}, \
                 wait=True)"
        ),
    ];
    let pieces = [
        "'", "\"", "\\", ",", ", ", "(", ")", "1", "0", "-", " ", "_", "b'a'", "x", "=", ".",
        "\u{e9}", "#", "None", "True", "wait=", "\t",
    ];
    let (mut state, mut read) = (0x2545_f491_4f6c_dd1d_u64, 0);
    let mut below = |end: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 16).unwrap() % end
    };
    for _ in 0..20_000 {
        let mut text = format!("[{}, {}]", commands[below(commands.len())], commands[0]);
        let at = below(text.len() - commands[0].len());
        match (below(3), pieces[below(pieces.len())]) {
            (0, _) => drop(text.remove(at)),
            (1, piece) => text.insert_str(at, piece),
            (_, piece) => text.replace_range(at..=at, piece),
        }
        let spaced = text.replacen("(session=", "( session=", 1);
        match (parse_parts(&text), parse_parts(&spaced)) {
            (Ok(one), Ok(other)) => {
                assert_eq!(one, other, "{text}");
                read += 1;
            }
            (Err(one), Err(other)) => {
                assert_eq!(discriminant(&one), discriminant(&other), "{text}");
            }
            (one, other) => panic!("{text}: {one:?}, {other:?}"),
        }
    }
    assert!(read > 1000 && read < 19_000, "{read}");
}

#[test]
fn sessions_that_look_alike_are_told_apart() {
    let key = |idx: u64, nonce: &str| format!("SessionKey(host='h', idx={idx}, nonce='{nonce}')");
    let keys = [key(0, "a"), key(0, "ab"), key(1, "a"), key(0, ""), key(10, "a")];
    let spelled = |n: usize| match n % 3 {
        0 => keys[n % 5].replace("SessionKey(", "SessionKey( "),
        _ => keys[n % 5].clone(),
    };
    let commands: Vec<_> =
        (0..60).map(|n| format!("SessionFree(session={})", spelled(n))).collect();
    let text = format!("[{}]", commands.join(", "));
    let (mut tape, limits) = (Tape::new(), limits());
    let read = Commands::parse(Commands::default(), &mut tape, text.as_bytes(), &limits).unwrap();
    for index in 0..60 {
        assert_eq!(read.session(index).unwrap().1.to_string(), keys[index % 5]);
    }
    // Some are there twice, read in either way; no more than that.
    assert!(read.session_count() <= 2 * keys.len());
    assert!(read.session(60).is_none() && read.get(60).is_none() && read.request(60).is_none());
}

#[test]
fn memory_of_commands_is_used_again_and_bounded() {
    let exec = format!(
        "ProgramExec(session={KEY}, name='f', datahash='{}', bufs=(1, 2), vals=(3,), \
         global_size=None, local_size=(4, 5, 6), wait=False)",
        "ab".repeat(32)
    );
    let (mut tape, limits) = (Tape::new(), limits());
    let text = |count: usize| format!("[{}]", vec![exec.as_str(); count].join(", "));
    let (long, short) = (text(1000), text(2));
    let read = Commands::parse(Commands::default(), &mut tape, long.as_bytes(), &limits).unwrap();
    let expected = parse_batch(short.as_bytes(), &limits).unwrap();
    for memory in [read.recycle(1 << 20), Commands::default()] {
        let read = Commands::parse(memory, &mut tape, short.as_bytes(), &limits).unwrap();
        let requests: Vec<_> = (0..read.len()).filter_map(|index| read.request(index)).collect();
        assert_eq!(requests, expected);
        let Some(Stored::Launch(launch)) = read.get(1) else { panic!("not kept flat") };
        assert_eq!(
            Command::ProgramExec(Box::new(launch.to_record("f".into()))),
            requests[1].command
        );
    }
    let read = Commands::parse(Commands::default(), &mut tape, long.as_bytes(), &limits).unwrap();
    assert!(read.memory_bytes() > 64_000);
    assert_eq!(read.recycle(64_000).memory_bytes(), 0);
}

/// Reads a text in slices, and how many there were.
fn parse_in_slices(text: &str, bytes: usize) -> Result<(Vec<Request<'_>>, usize), WireError> {
    let (mut tape, limits, mut slices) = (Tape::new(), limits(), 1);
    let mut parsing = Parsing::begin(Commands::default(), text.as_bytes(), &limits)?;
    while !parsing.go_on(&mut tape, &limits, bytes)? {
        // Somebody else's text is read in between.
        tape = Tape::new();
        slices += 1;
    }
    let read = parsing.finish();
    Ok(((0..read.len()).filter_map(|index| read.request(index)).collect(), slices))
}

#[test]
fn text_read_in_slices_says_the_same() {
    let free = |number: usize| format!("BufferFree(session={KEY}, buffer_num={number})");
    let frees: Vec<_> = (0..20).map(free).collect();
    let text = format!(" [ {} , ] ", frees.join(" , "));
    let expected = parse_batch(text.as_bytes(), &limits()).unwrap();
    for (bytes, slices) in [(0, 20), (1, 20), (text.len() / 2, 2), (usize::MAX, 1)] {
        assert_eq!(parse_in_slices(&text, bytes).unwrap(), (expected.clone(), slices), "{bytes}");
    }
    for bad in ["[".to_owned(), text[..text.len() - 2].to_owned(), format!("{text}x")] {
        let expected = parse_batch(bad.as_bytes(), &limits()).unwrap_err().to_string();
        assert_eq!(parse_in_slices(&bad, 1).unwrap_err().to_string(), expected, "{bad}");
    }
    assert_eq!(parse_in_slices("[]", 0).unwrap(), (Vec::new(), 1));
}

#[test]
fn graph_read_in_slices_is_what_the_tape_reads() {
    let digest = "ab".repeat(32);
    let kernel = format!(
        "GraphComputeItem({KEY}, 'f', '{digest}', (1, 2), (), {{}}, (3,), (0,), None, None)"
    );
    let copy = format!("Transfer(1, {KEY}, 2, session={KEY})");
    let text = |items: &str| {
        format!(
            "[BufferFree(session={KEY}, buffer_num=1), GraphAlloc(session={KEY}, graph_num=7, \
             jit_cache=({items}), bufs=(({KEY}, 1),), var_vals={{}})]"
        )
    };
    // Not the stock client's spelling, and as long.
    let of_tape = |text: &str| text.replace(", GraphAlloc(session", ",GraphAlloc( session");
    let longer = format!("{kernel}, {copy}, {kernel}, {copy}");
    let odd = format!("{kernel}, ");
    for (items, slices) in [("", 2), (&odd, 3), (&format!("{kernel},"), 2), (&longer, 5)] {
        let (text, other) = (text(items), of_tape(&text(items)));
        let expected = parse_parts(&other).unwrap();
        assert_eq!(parse_parts(&text).unwrap(), expected);
        let (read, taken) = parse_in_slices(&text, 1).unwrap();
        let read: Vec<_> = read.into_iter().map(|r| (r.session, r.command)).collect();
        assert_eq!((read, taken), (expected, slices), "{text}");
    }
    let whole = text(&longer);
    for bad in [
        text(&kernel),
        text(&longer.replace("'f'", "5")),
        text(&longer).replace("var_vals", "vals"),
        text(&longer).replace("{})]", "{}]"),
        text(&format!("{longer} {kernel}")),
        whole[..whole.len() - 200].to_owned(),
    ] {
        let other = of_tape(&bad);
        let expected = parse_batch(other.as_bytes(), &limits()).unwrap_err().to_string();
        assert_eq!(parse_in_slices(&bad, 1).unwrap_err().to_string(), expected, "{bad}");
    }
}

/// The session and the command of a batch, or the kind of error.
fn parse_parts(text: &str) -> Result<Vec<(SessionKey<'_>, Command<'_>)>, WireErrorKind> {
    let requests = parse_batch(text.as_bytes(), &limits()).map_err(|error| error.kind().clone())?;
    Ok(requests.into_iter().map(|request| (request.session, request.command)).collect())
}

#[test]
fn strings_without_escapes_are_borrowed() {
    let text = format!("[ProgramFree('na' 'me', '{}', session={KEY})]", "0".repeat(64));
    let request = parse_one(&text).unwrap();
    assert!(matches!(request.session.nonce, std::borrow::Cow::Borrowed("00ff")));
    let Command::ProgramFree(free) = request.command else { panic!() };
    assert!(matches!(free.name, std::borrow::Cow::Owned(name) if name == "name"));
}
