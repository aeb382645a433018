//! NVRTC and comgr as libraries that work for whoever wrote the source: they do what its first
//! line says and put what came of it into the result.
//!
//! Built by the tests as a library without dependencies, under the names of the real ones. The
//! calls have the types of `nvrtc.h` and `amd_comgr.h`.

#![expect(clippy::missing_safety_doc, reason = "the headers of the real libraries say it")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "as above")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "as above")]
#![expect(clippy::unwrap_used, reason = "a library that cannot go on may abort")]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::Mutex;

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn fork() -> c_int;
}

/// Does what the source says. An error is the log of a failed compile.
fn obey(source: &str) -> Result<Vec<u8>, String> {
    let line = source.lines().next().unwrap_or_default();
    let (verb, object) = line.trim_start_matches("// ").split_once(' ').unwrap_or((line, ""));
    let told = |done: bool| Ok(if done { b"done".to_vec() } else { b"denied".to_vec() });
    match verb.trim_start_matches("// ") {
        "abort" => std::process::abort(),
        "big" => Ok(vec![7; 64 << 20]),
        "connect" => told(std::net::TcpStream::connect(object).is_ok()),
        "exec" => told(std::process::Command::new(object).spawn().is_ok()),
        "fork" => told(unsafe { fork() } != -1),
        "hog" => loop {
            std::mem::forget(std::hint::black_box(vec![0_u8; 1 << 26]));
        },
        "load" => {
            let name = CString::new(object).unwrap();
            told(!unsafe { dlopen(name.as_ptr(), 2) }.is_null())
        }
        "loop" => loop {
            std::hint::spin_loop();
        },
        "noise" => {
            println!("noise");
            Ok(b"quiet".to_vec())
        }
        "read" => told(std::fs::read(object).is_ok()),
        "reject" => Err("/srv/x/kernel.hip:2:1: error: hip says no (/usr/lib/secret)\n\
            kernel.cu(2): error: cuda says no (/usr/lib/secret)\n"
            .to_owned()),
        "stat" => told(std::fs::metadata(object).is_ok()),
        "thread" => told(std::thread::Builder::new().spawn(|| ()).is_ok_and(|t| t.join().is_ok())),
        "write" => {
            let dir = std::env::temp_dir();
            told(std::fs::create_dir(dir.join("d")).is_ok_and(|()| {
                std::fs::write(dir.join("d/f"), "x").is_ok()
                    && std::fs::read(dir.join("d/f")).is_ok()
            }))
        }
        "where" => Ok(std::env::temp_dir().into_os_string().into_encoded_bytes()),
        _ => Ok(source.as_bytes().to_vec()),
    }
}

fn text(text: *const c_char) -> String {
    unsafe { CStr::from_ptr(text) }.to_str().unwrap().to_owned()
}

fn strings(array: *const *const c_char, count: usize) -> Vec<String> {
    (0..count).map(|i| text(unsafe { *array.add(i) })).collect()
}

// NVRTC.

#[derive(Default)]
struct Program {
    source: String,
    headers: Vec<String>,
    log: Vec<u8>,
    cubin: Option<Vec<u8>>,
    ptx: Option<Vec<u8>>,
}

/// Programs that were made and not destroyed.
static PROGRAMS: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn program(program: *mut c_void) -> &'static mut Program {
    assert!(PROGRAMS.lock().unwrap().contains(&program.addr()), "no such program");
    unsafe { &mut *program.cast() }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> c_int {
    unsafe { (*major, *minor) = (13, 0) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetNumSupportedArchs(count: *mut c_int) -> c_int {
    unsafe { *count = 3 };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetSupportedArchs(archs: *mut c_int) -> c_int {
    unsafe { archs.cast::<[c_int; 3]>().write([75, 80, 90]) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetErrorString(_status: c_int) -> *const c_char {
    c"COMPILATION".as_ptr()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcCreateProgram(
    made: *mut *mut c_void,
    source: *const c_char,
    name: *const c_char,
    count: c_int,
    headers: *const *const c_char,
    names: *const *const c_char,
) -> c_int {
    assert_eq!(text(name), "kernel.cu");
    let count = usize::try_from(count).unwrap();
    let contents = strings(headers, count);
    let headers = strings(names, count).into_iter().zip(contents);
    let headers = headers.map(|(name, content)| format!("{name}={content}")).collect();
    let program = Program { source: text(source), headers, ..Program::default() };
    let program = Box::into_raw(Box::new(program)).cast::<c_void>();
    PROGRAMS.lock().unwrap().push(program.addr());
    unsafe { *made = program };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcDestroyProgram(gone: *mut *mut c_void) -> c_int {
    let gone = unsafe { *gone };
    PROGRAMS.lock().unwrap().retain(|&known| known != gone.addr());
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcCompileProgram(
    which: *mut c_void,
    count: c_int,
    options: *const *const c_char,
) -> c_int {
    let program = program(which);
    let options = strings(options, usize::try_from(count).unwrap());
    let words = options.iter().chain(&program.headers).map(String::as_str);
    let words = words.collect::<Vec<_>>().join(" ");
    match obey(&program.source) {
        Ok(code) => {
            let is_ptx = options.iter().any(|option| option.contains("=compute_"));
            let mut code = [&code[..], b" ", words.as_bytes()].concat();
            if is_ptx {
                code.push(0);
                program.ptx = Some(code);
            } else {
                program.cubin = Some(code);
            }
            0
        }
        Err(log) => {
            program.log = log.into_bytes();
            6
        }
    }
}

fn size(bytes: Option<&Vec<u8>>, size: *mut usize) -> c_int {
    let Some(bytes) = bytes else { return 7 };
    unsafe { *size = bytes.len() };
    0
}

fn copy(bytes: Option<&Vec<u8>>, to: *mut u8) -> c_int {
    let Some(bytes) = bytes else { return 7 };
    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetCUBINSize(which: *mut c_void, to: *mut usize) -> c_int {
    size(program(which).cubin.as_ref(), to)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetCUBIN(which: *mut c_void, to: *mut u8) -> c_int {
    copy(program(which).cubin.as_ref(), to)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetPTXSize(which: *mut c_void, to: *mut usize) -> c_int {
    size(program(which).ptx.as_ref(), to)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetPTX(which: *mut c_void, to: *mut u8) -> c_int {
    copy(program(which).ptx.as_ref(), to)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetProgramLogSize(which: *mut c_void, to: *mut usize) -> c_int {
    size(Some(&program(which).log), to)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvrtcGetProgramLog(which: *mut c_void, to: *mut u8) -> c_int {
    copy(Some(&program(which).log), to)
}

// comgr, of version 2 or, with `--cfg comgr3`, 3.

const VERSION: (usize, usize) = if cfg!(comgr3) { (3, 0) } else { (2, 9) };
const LANGUAGE_HIP: c_int = if cfg!(comgr3) { 3 } else { 4 };
/// Compiling, code generation, linking.
const ACTIONS: [c_int; 3] = if cfg!(comgr3) { [12, 4, 7] } else { [15, 6, 9] };
/// Compiling without the device libraries, adding them, and linking both.
const ACTIONS_APART: [c_int; 3] = if cfg!(comgr3) { [-1; 3] } else { [2, 3, 4] };

/// Anything with a handle.
#[derive(Clone, Default)]
struct Object {
    bytes: Vec<u8>,
    kind: c_int,
    members: Vec<u64>,
    options: Vec<String>,
    isa: String,
}

/// Handles are places in the list, plus one; a destroyed object is `None`.
static OBJECTS: Mutex<Vec<Option<Object>>> = Mutex::new(Vec::new());

fn make(object: Object, to: *mut u64) -> c_int {
    let mut objects = OBJECTS.lock().unwrap();
    objects.push(Some(object));
    unsafe { *to = u64::try_from(objects.len()).unwrap() };
    0
}

fn with<T>(handle: u64, body: impl FnOnce(&mut Option<Object>) -> T) -> T {
    let mut objects = OBJECTS.lock().unwrap();
    let object = &mut objects[usize::try_from(handle - 1).unwrap()];
    assert!(object.is_some(), "no such object");
    body(object)
}

fn look(handle: u64) -> Object {
    with(handle, |object| object.clone()).unwrap()
}

fn member_of(set: u64, kind: c_int) -> Option<u64> {
    look(set).members.into_iter().find(|&member| look(member).kind == kind)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_get_version(major: *mut usize, minor: *mut usize) {
    unsafe { (*major, *minor) = VERSION };
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_status_string(_status: c_int, to: *mut *const c_char) -> c_int {
    unsafe { *to = c"ERROR".as_ptr() };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_create_data(kind: c_int, to: *mut u64) -> c_int {
    make(Object { kind, ..Object::default() }, to)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_create_data_set(to: *mut u64) -> c_int {
    make(Object::default(), to)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_create_action_info(to: *mut u64) -> c_int {
    make(Object::default(), to)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_destroy_data_set(set: u64) -> c_int {
    with(set, |object| *object = None);
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_destroy_action_info(info: u64) -> c_int {
    with(info, |object| *object = None);
    0
}

/// Sets hold what they have, so a datum outlives this.
#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_release_data(data: u64) -> c_int {
    with(data, |_| 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_set_data(data: u64, size: usize, bytes: *const u8) -> c_int {
    let bytes = unsafe { std::slice::from_raw_parts(bytes, size) }.to_vec();
    with(data, |object| object.as_mut().unwrap().bytes = bytes);
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_set_data_name(_data: u64, name: *const c_char) -> c_int {
    assert_eq!(text(name), "kernel.hip");
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_get_data(data: u64, size: *mut usize, to: *mut u8) -> c_int {
    let bytes = look(data).bytes;
    unsafe { *size = bytes.len() };
    if to.is_null() { 0 } else { copy(Some(&bytes), to) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_data_set_add(set: u64, data: u64) -> c_int {
    with(set, |object| object.as_mut().unwrap().members.push(data));
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_action_data_count(set: u64, kind: c_int, to: *mut usize) -> c_int {
    unsafe { *to = usize::from(member_of(set, kind).is_some()) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_action_data_get_data(
    set: u64,
    kind: c_int,
    index: usize,
    to: *mut u64,
) -> c_int {
    assert_eq!(index, 0);
    unsafe { *to = member_of(set, kind).unwrap() };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_action_info_set_language(_info: u64, language: c_int) -> c_int {
    c_int::from(language != LANGUAGE_HIP)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_action_info_set_isa_name(info: u64, isa: *const c_char) -> c_int {
    let isa = text(isa);
    if isa.ends_with("gfx1") {
        return 2;
    }
    with(info, |object| object.as_mut().unwrap().isa = isa);
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_action_info_set_logging(_info: u64, on: bool) -> c_int {
    c_int::from(!on)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_action_info_set_option_list(
    info: u64,
    options: *const *const c_char,
    count: usize,
) -> c_int {
    let options = strings(options, count);
    with(info, |object| object.as_mut().unwrap().options = options);
    0
}

/// Each step but the first wraps what it gets. A source that says `apart` lacks the device
/// libraries unless they were added by an action of their own.
#[unsafe(no_mangle)]
unsafe extern "C" fn amd_comgr_do_action(action: c_int, info: u64, from: u64, to: u64) -> c_int {
    let info = look(info);
    let input = look(look(from).members[0]).bytes;
    let input = String::from_utf8(input).unwrap();
    let is_apart = input.contains("apart");
    let ([compile, codegen, link], [alone, add, join]) = (ACTIONS, ACTIONS_APART);
    let result = if action == compile || action == alone {
        obey(&input)
    } else if action == add && is_apart {
        Ok(format!("libraries {input}").into_bytes())
    } else if action == link && is_apart && !input.contains("libraries") {
        Err("lld: error: undefined hidden symbol: __ockl_get_group_id".to_owned())
    } else if [codegen, link, join].contains(&action) {
        Ok(input.into_bytes())
    } else {
        Err(format!("error: action {action}"))
    };
    let (kind, bytes, status) = match result {
        Ok(mut bytes) => {
            if bytes.len() < 1 << 20 {
                let words = format!(" {action}:{}:{}", info.isa, info.options.join(","));
                bytes.extend_from_slice(words.as_bytes());
            }
            (if action == link { 8 } else { 6 }, bytes, 0)
        }
        Err(log) => (5, log.into_bytes(), 1),
    };
    let mut data = 0;
    make(Object { kind, bytes, ..Object::default() }, &raw mut data);
    unsafe { amd_comgr_data_set_add(to, data) };
    status
}
