//! The rules of the house that no compiler checks: which module may know which, where `unsafe` may
//! be, how long lines, functions and files may get.
//!
//! A finding reads `path:line: what, why`. Reading order: the tables, the rules, the lexer that
//! blanks out comments and strings, then tests of the rules themselves.

use std::fs;
use std::path::{Path, PathBuf};

/// Which modules of the crate each module may name. A folder counts as one module.
const IMPORTS: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("blob", &[]),
    ("cores", &[]),
    ("identity", &["config"]),
    ("wire", &["blob", "config"]),
    ("http", &["config"]),
    ("compile", &["blob", "config", "cores"]),
    ("device", &["blob", "compile", "config", "cores"]),
    ("rdma", &["config", "cores", "device", "identity"]),
    ("engine", &["blob", "compile", "config", "device", "identity", "rdma", "wire"]),
    (
        "shard",
        &[
            "blob", "check", "compile", "config", "cores", "device", "engine", "http", "identity",
            "rdma", "wire",
        ],
    ),
    ("check", &["compile", "config", "device", "rdma", "shard"]),
    ("lib", &[]),
    (
        "main",
        &[
            "blob", "check", "compile", "config", "cores", "device", "engine", "http", "identity",
            "rdma", "shard", "wire",
        ],
    ),
];

/// Modules that may hold `unsafe` code: they talk to drivers, compilers and the kernel.
const UNSAFE: &[&str] = &["compile", "cores", "device", "rdma", "shard"];

/// Folders that forbid it to themselves, at the top of their `mod.rs`.
const FORBIDS_UNSAFE: &[&str] = &["engine", "http", "identity", "wire"];

/// The module that may name the executor.
const EXECUTOR: (&str, &str) = ("shard", "glommio");

const COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 800;

/// What may not be in `src` at all, and why. The first list is looked for in code, the second in
/// comments too.
const BANNED_IN_CODE: &[(&str, &str)] = &[
    ("todo!", "nothing is left unfinished"),
    ("unimplemented!", "nothing is left unfinished"),
    ("dbg!", "logs go through tracing"),
    ("#[allow(", "use #[expect(lint, reason)], which tells when it is no longer needed"),
    ("#![allow(", "use #[expect(lint, reason)], which tells when it is no longer needed"),
    ("thread::sleep", "nothing blocks a shard and nothing synchronises by time"),
    ("super::super::", "name modules from crate:: so that the table of imports sees them"),
];
const BANNED_ANYWHERE: &[(&str, &str)] = &[
    ("TODO", "what is missing is written down elsewhere or done"),
    ("FIXME", "what is broken is written down elsewhere or mended"),
];

/// A Rust file of this repository.
struct Source {
    /// From the repository's root, with forward slashes.
    path: String,
    text: String,
    /// The text with comments and the contents of literals blanked out; lines stay where they are.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned(), code: blanked(text) }
    }

    /// The module of a file under `src`: its folder, or its name.
    fn module(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        Some(inside.split_once('/').map_or(inside.trim_end_matches(".rs"), |(folder, _)| folder))
    }

    fn finding(&self, offset: usize, what: &str) -> String {
        let line = self.text[..offset].matches('\n').count() + 1;
        format!("{}:{line}: {what}", self.path)
    }
}

fn imports(source: &Source) -> Vec<String> {
    let Some(module) = source.module() else { return Vec::new() };
    let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == module) else {
        return vec![source.finding(0, &format!("{module} is not in the table of imports"))];
    };
    let mut findings = Vec::new();
    let roots: &[&str] = if module == "main" { &["crate", "outboard"] } else { &["crate"] };
    let paths = roots
        .iter()
        .flat_map(|root| words(&source.code, root).map(|at| (at, &source.code[at + root.len()..])));
    for (at, path) in paths {
        let Some(path) = path.strip_prefix("::") else { continue };
        for name in first_names(path) {
            if name != module && !allowed.contains(&name) {
                let what = format!("{module} names {name}, which it may not know");
                findings.push(source.finding(at, &what));
            }
        }
    }
    findings
}

/// The names that a path begins with: one, or those of a group in braces.
fn first_names(path: &str) -> Vec<&str> {
    let name_of =
        |text: &'_ str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let Some(group) = path.strip_prefix('{') else { return vec![&path[..name_of(path)]] };
    let mut names = Vec::new();
    let mut depth = 0;
    let mut begins = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            _ if begins && depth == 0 && !c.is_whitespace() => {
                names.push(&group[at..at + name_of(&group[at..])]);
                begins = false;
            }
            _ => {}
        }
    }
    names
}

fn unsafe_code(source: &Source) -> Vec<String> {
    let Some(module) = source.module() else { return Vec::new() };
    let is_root = source.path == format!("src/{module}/mod.rs");
    if FORBIDS_UNSAFE.contains(&module)
        && is_root
        && !source.code.contains("#![forbid(unsafe_code)]")
    {
        return vec![source.finding(0, "#![forbid(unsafe_code)] is missing")];
    }
    if UNSAFE.contains(&module) {
        return Vec::new();
    }
    let what = format!("unsafe in {module}, which has to do without");
    words(&source.code, "unsafe").map(|at| source.finding(at, &what)).collect()
}

fn executor(source: &Source) -> Vec<String> {
    let (home, name) = EXECUTOR;
    match source.module() {
        Some(module) if module != home => {
            let what = format!("{name} outside of {home}, which is the seam to it");
            words(&source.code, name).map(|at| source.finding(at, &what)).collect()
        }
        _ => Vec::new(),
    }
}

fn banned(source: &Source) -> Vec<String> {
    if source.module().is_none() {
        return Vec::new();
    }
    let in_code = BANNED_IN_CODE.iter().map(|ban| (&source.code, ban));
    let anywhere = BANNED_ANYWHERE.iter().map(|ban| (&source.text, ban));
    in_code
        .chain(anywhere)
        .flat_map(|(text, (word, why))| {
            let what = format!("{word} is banned: {why}");
            text.match_indices(*word).map(move |(at, _)| source.finding(at, &what))
        })
        .collect()
}

fn docs(source: &Source) -> Vec<String> {
    if source.module().is_some() && !source.text.starts_with("//!") {
        return vec![source.finding(0, "the file does not say what it owns (//!)")];
    }
    Vec::new()
}

fn sizes(source: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        let what = format!("{lines} lines in a file, at most {FILE_LINES_MAX}");
        findings.push(source.finding(0, &what));
    }
    for (index, line) in source.text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            let path = &source.path;
            let what = format!("{path}:{}: {columns} columns, at most {COLUMNS_MAX}", index + 1);
            findings.push(what);
        }
    }
    for at in words(&source.code, "fn") {
        if let Some(lines) = function_lines(&source.code[at..])
            && lines > FUNCTION_LINES_MAX
        {
            let what = format!("{lines} lines in a function, at most {FUNCTION_LINES_MAX}");
            findings.push(source.finding(at, &what));
        }
    }
    findings
}

/// Lines from `fn` to the end of the body, or `None` for a type or a declaration without body.
fn function_lines(code: &str) -> Option<usize> {
    let named = code["fn".len()..].trim_start();
    if !named.starts_with(|c: char| c.is_alphabetic() || c == '_') {
        return None;
    }
    let (mut braces, mut brackets) = (0, 0);
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if braces == 0 && brackets == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 {
                    return Some(code[..at].matches('\n').count() + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// Where a word stands in a text, as a whole.
fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let continues = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        !text[..at].ends_with(continues) && !text[at + word.len()..].starts_with(continues)
    })
}

/// The text with comments and the contents of literals as spaces, of the same length.
fn blanked(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let bytes = opaque_bytes(rest, code.chars().next_back());
        if bytes == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let blank = |b: u8| if b == b'\n' { '\n' } else { ' ' };
        code.extend(rest.bytes().take(bytes).map(blank));
        rest = &rest[bytes..];
    }
    code
}

/// Bytes of the comment or literal that begins here, or 0. `before` is the character in front.
fn opaque_bytes(rest: &str, before: Option<char>) -> usize {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let up_to = |end: Option<usize>| end.unwrap_or(rest.len());
    if rest.starts_with("//") {
        up_to(rest.find('\n'))
    } else if rest.starts_with("/*") {
        block_comment_bytes(rest)
    } else if rest.starts_with('"') {
        quoted_bytes(rest, '"')
    } else if rest.starts_with('r') && (!in_word || before == Some('b')) {
        let hashes = rest[1..].len() - rest[1..].trim_start_matches('#').len();
        if !rest[1 + hashes..].starts_with('"') {
            return 0;
        }
        let end = format!("\"{}", "#".repeat(hashes));
        let start = hashes + 2;
        up_to(rest[start..].find(&end).map(|at| start + at + end.len()))
    } else if let Some(inside) = rest.strip_prefix('\'') {
        // A lifetime has no second quote behind its first character.
        let first = inside.chars().next().map_or(0, char::len_utf8);
        let is_character = inside.starts_with('\\') || inside[first..].starts_with('\'');
        if is_character { quoted_bytes(rest, '\'') } else { 0 }
    } else {
        0
    }
}

/// Bytes of a literal from its opening to its closing quote.
fn quoted_bytes(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Bytes of a block comment; they nest.
fn block_comment_bytes(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        if rest.as_bytes()[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.as_bytes()[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Every Rust file of the repository, build outputs left out.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> = ["benches", "examples", "fuzz", "perf", "src", "sys", "tests"]
        .map(|name| root.join(name))
        .into();
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("a folder of the repository is readable").path();
            let is_output = path.file_name().is_some_and(|name| name == "target");
            if path.is_dir() && !is_output {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file is text");
                let inside = path.strip_prefix(root).expect("the walk began at the root");
                sources.push(Source::new(&inside.to_string_lossy(), &text));
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(sources.iter().any(|source| source.path == "src/lib.rs"), "the walk found no sources");
    sources
}

fn check(rule: fn(&Source) -> Vec<String>) {
    let findings: Vec<String> = sources().iter().flat_map(rule).collect();
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn modules_name_only_those_before_them() {
    check(imports);
}

#[test]
fn unsafe_code_stays_where_it_belongs() {
    check(unsafe_code);
}

#[test]
fn executor_is_named_in_its_folder_only() {
    check(executor);
}

#[test]
fn banned_words_do_not_occur() {
    check(banned);
}

#[test]
fn files_say_what_they_own() {
    check(docs);
}

#[test]
fn lines_functions_and_files_stay_short() {
    check(sizes);
}

#[test]
fn import_of_a_later_module_is_found() {
    let found = |path: &str, text: &str| imports(&Source::new(path, text)).join("\n");
    assert_eq!(
        found("src/http/head.rs", "//! x\nuse crate::wire::Batch;\n"),
        "src/http/head.rs:2: http names wire, which it may not know"
    );
    let group = "use crate::{\n    config::{self, engine},\n    shard,\n};";
    assert_eq!(found("src/wire/a/b.rs", group).lines().count(), 1);
    assert!(found("src/wire.rs", group).contains("names shard"));
    assert!(found("src/extra.rs", "").contains("extra is not in the table"));
    assert_eq!(found("src/main.rs", "use outboard::shard; // crate::nothing"), "");
    assert_eq!(
        found("src/http/mod.rs", "//! crate::wire\nuse crate::http::x; \"crate::wire\""),
        ""
    );
    assert_eq!(found("src/http/mod.rs", "pub(crate) fn f() -> std::io::Result<()> {}"), "");
    assert_eq!(found("tests/a.rs", "use crate::anything;"), "");
}

#[test]
fn unsafe_and_executor_out_of_place_are_found() {
    let source = |path: &str, text: &str| Source::new(path, text);
    let count = |source: &Source| unsafe_code(source).len() + executor(source).len();
    assert_eq!(count(&source("src/blob.rs", "fn f() { unsafe { g() } }")), 1);
    assert_eq!(count(&source("src/device/cpu.rs", "fn f() { unsafe { g() } }")), 0);
    assert_eq!(count(&source("src/wire/mod.rs", "// unsafe\n#![forbid(unsafe_code)]")), 0);
    assert_eq!(count(&source("src/wire/mod.rs", "// #![forbid(unsafe_code)]")), 1);
    assert_eq!(count(&source("src/main.rs", "use glommio::Task;")), 1);
    assert_eq!(count(&source("src/main.rs", "let filter = \"glommio=warn\"; // glommio")), 0);
    assert_eq!(count(&source("src/shard/io.rs", "use glommio::Task;")), 0);
}

#[test]
fn banned_words_are_found_in_code_and_comments() {
    let count = |text: &str| banned(&Source::new("src/blob.rs", text)).len();
    assert_eq!(count("fn f() { todo!() }"), 1);
    assert_eq!(count("// todo! as a word\nlet x = \"dbg!\";"), 0);
    assert_eq!(count("// TODO: later"), 1);
    assert_eq!(count("#[allow(dead_code)]\nuse super::super::x;\nstd::thread::sleep(d);"), 3);
}

#[test]
fn long_lines_functions_and_files_are_found() {
    let count = |text: &str| sizes(&Source::new("src/blob.rs", text)).len();
    assert_eq!(count(&"x".repeat(COLUMNS_MAX)), 0);
    assert_eq!(count(&"\u{e9}".repeat(COLUMNS_MAX + 1)), 1);
    assert_eq!(count(&"\n".repeat(FILE_LINES_MAX)), 0);
    assert_eq!(count(&"\n".repeat(FILE_LINES_MAX + 1)), 1);
    let function = |lines: usize| format!("fn f(x: [u8; 4]) {{{}}}\n", "\n".repeat(lines - 1));
    assert_eq!(count(&function(FUNCTION_LINES_MAX)), 0);
    assert_eq!(count(&function(FUNCTION_LINES_MAX + 1)), 1);
    let declared = format!("type F = fn(u8);\nfn f(x: u8);{}{{}}", "\n".repeat(100));
    assert_eq!(count(&declared), 0);
}

#[test]
fn blanked_text_keeps_code_and_lines_only() {
    let check = |text: &str, code: &str| assert_eq!(blanked(text), code, "{text}");
    check("a // b \"\nc", "a       \nc");
    check("a /* b /* c\n */ d */ e", "a          \n         e");
    check("f(\"{ \\\" }\") + '{' + b'\\'' + x::<'a>()", "f(        ) +     + b     + x::<'a>()");
    check("r#\"{ \" \"# br\"\\\" r.x", "          b     r.x");
    check("\u{e9}\"\u{e9}\"", "\u{e9}    ");
}
