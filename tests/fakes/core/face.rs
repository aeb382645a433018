//! How the faces declare C functions.

/// Declares calls that answer with a code: each is traced with its arguments and made under the
/// machine's lock.
macro_rules! calls {
    ($($role:ident fn $name:ident($gpu:ident $(, $arg:ident: $type:ty)* $(,)?) $body:block)*) => {$(
        /// # Safety
        ///
        /// As the library's documentation says.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name($($arg: $type),*) -> std::ffi::c_int {
            let detail = || {
                #[allow(unused_mut, reason = "a call without arguments has no text for them")]
                let mut text = String::new();
                $(text += &format!(concat!(" ", stringify!($arg), "={:?}"), $arg);)*
                text
            };
            let body = |$gpu: &mut $crate::fake::Gpu| -> $crate::fake::Outcome<()> { $body };
            $crate::fake::call(stringify!($name), $role, detail, body)
        }
    )*};
}
pub(crate) use calls;

/// Hands a value back through a pointer that the caller gave.
macro_rules! give {
    ($to:expr, $value:expr) => {{
        let value = $value;
        // SAFETY: the caller gives a place for the result, or null.
        unsafe { $crate::fake::calls::put($to, value) }
    }};
}
pub(crate) use give;
