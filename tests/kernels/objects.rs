//! Objects that are no kernels: refused with a reason, and never a crash of the loader.

use super::*;

fn refusal(service: &outboard::compile::Service, source: &str) -> LoadError {
    let object = compile(service, source).unwrap();
    Kernel::load(&object).expect_err(source)
}

#[test]
fn object_with_what_no_kernel_needs_is_refused() {
    for service in services() {
        for source in [
            "int g = 3; void f(void) { g++; }",
            "int g; void f(void) { g++; }",
            "static int g; void f(int* a) { *a = g++; }",
            "_Thread_local int g = 1; void f(void) { g++; }",
            "__attribute__((constructor)) static void c(void) { volatile int x = 1; x++; }\n\
             void f(void) { }",
            "__attribute__((section(\".init_array\"))) void* const p = 0; void f(void) { }",
            "static void* r(void) { return 0; }\n\
             __attribute__((ifunc(\"r\"))) void g(void); void f(void) { g(); }",
        ] {
            let error = refusal(&service, source);
            let expected = matches!(
                error,
                LoadError::Section { .. }
                    | LoadError::Symbol { .. }
                    | LoadError::Undefined { .. }
                    | LoadError::Relocation { .. }
                    | LoadError::Entries { .. }
            );
            assert!(expected, "{source}: {error}");
        }
    }
}

#[test]
fn object_that_calls_a_library_is_refused_by_name() {
    for service in services() {
        let error = refusal(&service, "int system(const char*); void f(void) { system(0); }");
        assert_eq!(error.to_string(), "`system` is not defined: kernels have no library");
    }
}

#[test]
fn object_without_exactly_one_entry_is_refused() {
    for service in services() {
        for (source, expected) in [
            ("static void f(void) { }", 0),
            ("const int x = 3;", 0),
            ("void f(void) { } void g(void) { }", 2),
        ] {
            let error = refusal(&service, source);
            assert!(matches!(error, LoadError::Entries { count } if count == expected), "{error}");
        }
    }
}

#[test]
fn object_of_another_kind_is_refused() {
    let executable = std::fs::read(std::env::current_exe().unwrap());
    let error = Kernel::load(&executable.unwrap()).unwrap_err();
    assert!(matches!(error, LoadError::NotRelocatable | LoadError::TooLong { .. }), "{error}");
    assert!(matches!(Kernel::load(b""), Err(LoadError::Malformed(_))));
    assert!(matches!(Kernel::load(b"\x7fELF and no more"), Err(LoadError::Malformed(_))));
    assert!(matches!(Kernel::load(&vec![0; 65 << 20]), Err(LoadError::TooLong { .. })));
}

#[test]
fn object_cut_anywhere_never_crashes_the_loader() {
    for name in ["buffers_25", "half_matmul"] {
        for object in objects_of(name) {
            for length in 0..object.len() {
                assert!(Kernel::load(&object[..length]).is_err(), "{name} {length}");
            }
        }
    }
}

#[test]
fn object_with_flipped_bits_never_crashes_the_loader() {
    let mut outcomes = [0, 0];
    for name in ["elementwise", "half_elementwise", "buffers_25"] {
        for object in objects_of(name) {
            let mut object = object.to_vec();
            for at in 0..object.len() {
                for bit in [at % 8, (at + 5) % 8] {
                    object[at] ^= 1 << bit;
                    // Loaded or refused; never called, since the flipped bit may be in the code.
                    outcomes[usize::from(Kernel::load(&object).is_ok())] += 1;
                    object[at] ^= 1 << bit;
                }
                let old = std::mem::replace(&mut object[at], 0xff);
                outcomes[usize::from(Kernel::load(&object).is_ok())] += 1;
                object[at] = old;
            }
        }
    }
    assert!(outcomes.iter().all(|&count| count > 100), "{outcomes:?}");
}
