//! The fake compilers: they find the kernels of a source and complain about what is wrong with it.
//!
//! A source is wrong if it holds `#error`, includes a header that nobody gave, or its braces do not
//! match. `FAKE_COMPILER_CRASH` in it ends the process, `FAKE_COMPILER_HANG` never ends.

use super::image::{Image, Kernel, Parameter, uncommented};

/// Whose messages the compiler's look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Nvrtc,
    Clang,
}

/// A compilation.
pub(crate) struct Job<'a> {
    pub(crate) source: &'a str,
    pub(crate) name: &'a str,
    pub(crate) arch: &'a str,
    /// Headers that are there, by the names of the includes.
    pub(crate) headers: &'a [String],
    pub(crate) options: &'a [String],
    pub(crate) style: Style,
}

impl Job<'_> {
    /// The binary, or the log.
    pub(crate) fn compile(&self) -> Result<Image, String> {
        let code = uncommented(self.source);
        if code.contains("FAKE_COMPILER_CRASH") {
            std::process::abort();
        }
        while code.contains("FAKE_COMPILER_HANG") {
            std::hint::spin_loop();
        }
        self.check(&code)?;
        let mut image = Image { arch: self.arch.to_owned(), ..Image::default() };
        image.source = self.source.to_owned();
        image.kernels = kernels(&code).map_err(|at| {
            self.error(&code, at, "expected the name of a kernel and its parameters")
        })?;
        let notes = self.options.iter().map(|option| format!("option {option}"));
        let headers = self.headers.iter().map(|header| format!("header {header}"));
        image.notes = notes.chain(headers).collect();
        Ok(image)
    }

    fn check(&self, code: &str) -> Result<(), String> {
        let mut at = 0;
        for line in code.split_inclusive('\n') {
            if let Some(directive) = line.trim_start().strip_prefix('#') {
                let directive = directive.trim_start();
                if let Some(text) = directive.strip_prefix("error") {
                    return Err(self.error(code, at, &self.directive(text.trim())));
                }
                if let Some(header) = directive.strip_prefix("include") {
                    self.include(code, at, header.trim())?;
                }
            }
            at += line.len();
        }
        let mut depth = 0_i32;
        for (at, c) in code.char_indices() {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if depth < 0 {
                return Err(self.error(code, at, "expected a declaration"));
            }
        }
        if depth == 0 { Ok(()) } else { Err(self.error(code, code.len(), "expected a \"}\"")) }
    }

    fn directive(&self, text: &str) -> String {
        match self.style {
            Style::Nvrtc => format!("#error directive: {text}"),
            Style::Clang => text.to_owned(),
        }
    }

    fn include(&self, code: &str, at: usize, header: &str) -> Result<(), String> {
        let name = header.trim_matches(['<', '>', '"']);
        let is_in_folder = |option: &String| {
            option
                .strip_prefix("-I")
                .is_some_and(|folder| std::path::Path::new(folder.trim()).join(name).exists())
        };
        if self.headers.iter().any(|known| known == name) || self.options.iter().any(is_in_folder) {
            return Ok(());
        }
        let what = match self.style {
            Style::Nvrtc => format!("cannot open source file \"{name}\""),
            Style::Clang => format!("'{name}' file not found"),
        };
        Err(self.error(code, at, &what))
    }

    fn error(&self, code: &str, at: usize, what: &str) -> String {
        let (name, line) = (self.name, code[..at].matches('\n').count() + 1);
        match self.style {
            Style::Nvrtc => format!(
                "{name}({line}): error: {what}\n\n\
                 1 error detected in the compilation of \"{name}\".\n"
            ),
            Style::Clang => format!(
                "{name}:{line}:1: error: {what}\n1 error generated when compiling for {}.\n",
                self.arch
            ),
        }
    }
}

/// The kernels of a source without comments; else where something is wrong.
fn kernels(code: &str) -> Result<Vec<Kernel>, usize> {
    let mut kernels = Vec::new();
    for marker in ["__global__", "__attribute__((global))"] {
        for (at, _) in code.match_indices(marker) {
            kernels.push(kernel(&code[at + marker.len()..]).ok_or(at)?);
        }
    }
    Ok(kernels)
}

/// The kernel whose declaration goes on here, behind what makes it one.
fn kernel(code: &str) -> Option<Kernel> {
    let mut rest = code.trim_start();
    let mut block_threads = 0;
    loop {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
        let (word, after) = rest.split_at(end);
        let after = after.trim_start();
        match word {
            "void" => rest = after,
            "__launch_bounds__" | "__attribute__" => {
                let (inside, behind) = parenthesised(after)?;
                if word == "__launch_bounds__" || inside.contains("amdgpu_flat_work_group_size") {
                    block_threads = largest_number(inside);
                }
                rest = behind.trim_start();
            }
            "" => return None,
            name => {
                let (parameters, behind) = parenthesised(after)?;
                let parameters = parameters.split(',').map(str::trim);
                let parameters = parameters.filter(|text| !text.is_empty() && *text != "void");
                let kind = |text: &str| {
                    if text.contains('*') { Parameter::Pointer } else { Parameter::Int }
                };
                return Some(Kernel {
                    name: name.to_owned(),
                    block_threads,
                    shared_bytes: shared_bytes(behind),
                    parameters: parameters.map(kind).collect(),
                });
            }
        }
    }
}

/// What stands in the parentheses that the text begins with, and what stands behind them.
fn parenthesised(text: &str) -> Option<(&str, &str)> {
    let inside = text.strip_prefix('(')?;
    let mut depth = 1_u32;
    for (at, c) in inside.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&inside[..at], &inside[at + 1..]));
        }
    }
    None
}

/// Numbers are told from the digits in a name by what stands before them.
fn largest_number(text: &str) -> u32 {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter_map(|word| word.parse().ok()).max().unwrap_or(0)
}

/// Bytes of the shared arrays of four-byte elements up to the next kernel.
fn shared_bytes(body: &str) -> u32 {
    let end = body.find("__global__").unwrap_or(body.len());
    let mut bytes = 0;
    for marker in ["__shared__", "__attribute__((shared"] {
        for (at, _) in body[..end].match_indices(marker) {
            let declaration = body[at..].split(';').next().unwrap_or_default();
            let count = declaration.rsplit_once('[').map_or(0, |(_, count)| largest_number(count));
            bytes += 4 * count;
        }
    }
    bytes
}

/// PTX text with the same kernels.
pub(crate) fn ptx_of(image: &Image, target: &str) -> String {
    let mut text = format!(".version 8.8\n.target {target}\n.address_size 64\n");
    for kernel in &image.kernels {
        let parameter = |(index, parameter): (usize, &Parameter)| {
            let kind = if *parameter == Parameter::Pointer { ".u64" } else { ".u32" };
            format!("\t.param {kind} {}_param_{index}", kernel.name)
        };
        let parameters: Vec<String> = kernel.parameters.iter().enumerate().map(parameter).collect();
        text += &format!("\n.visible .entry {}(\n{}\n)\n", kernel.name, parameters.join(",\n"));
        if kernel.block_threads > 0 {
            text += &format!(".maxntid {}, 1, 1\n", kernel.block_threads);
        }
        text += "{\n";
        if kernel.shared_bytes > 0 {
            text += &format!("\t.shared .align 16 .b8 memory[{}];\n", kernel.shared_bytes);
        }
        text += "\tret;\n}\n";
    }
    text
}
