//! What the server answers, as the stock client reads it: Python expressions.

use std::fmt;

use super::repr;

/// The answer to `GetProperties`. A stock client takes exactly these fields.
#[derive(Clone, Copy, Debug)]
pub struct RemoteProperties<'a> {
    /// The device's name: `CPU`, `CUDA`.
    pub real_device: &'a str,
    pub renderer: Renderer<'a>,
    /// Whether `BufferOffset` works.
    pub offset_supported: bool,
    /// Whether the graph commands work.
    pub graph_supported: bool,
    /// Whether a graph may hold kernels of several devices, and transfers.
    pub graph_supports_multi: bool,
    /// The address for RDMA, where there is a device for it.
    pub ib_gid: Option<[u8; 16]>,
}

/// The class of tinygrad's that makes source text for a device.
#[derive(Clone, Copy, Debug)]
pub struct Renderer<'a> {
    pub module: &'a str,
    pub class: &'a str,
    /// A Python tuple of its constructor's arguments: `('sm_90',)`.
    pub arguments: &'a str,
}

impl fmt::Display for RemoteProperties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Renderer { module, class, arguments } = self.renderer;
        write!(
            f,
            "RemoteProperties(real_device={}, renderer=({}, {}, {arguments}), \
             offset_supported={}, graph_supported={}, graph_supports_multi={}, ib_gid=",
            repr::Str(self.real_device),
            repr::Str(module),
            repr::Str(class),
            repr::Bool(self.offset_supported),
            repr::Bool(self.graph_supported),
            repr::Bool(self.graph_supports_multi),
        )?;
        match self.ib_gid {
            Some(gid) => write!(f, "{})", repr::Bytes(&gid)),
            None => f.write_str("None)"),
        }
    }
}

/// The body of a reply with status 500: the client raises a `RuntimeError` with this message, the
/// one exception that its kernel search survives.
#[derive(Clone, Copy, Debug)]
pub struct RemoteException<'a> {
    pub message: &'a str,
}

impl fmt::Display for RemoteException<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = repr::Str(self.message);
        write!(f, "RemoteException(exc=RuntimeError({message}), trace='')")
    }
}

/// The answer of a command that was told to wait: how many seconds it took.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub f64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        repr::Float(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::{RemoteException, RemoteProperties, Renderer, Seconds};

    #[test]
    fn properties_are_printed_as_the_reference_does() {
        let properties = RemoteProperties {
            real_device: "CPU",
            renderer: Renderer {
                module: "tinygrad.renderer.cstyle",
                class: "ClangRenderer",
                arguments: "()",
            },
            offset_supported: true,
            graph_supported: true,
            graph_supports_multi: false,
            ib_gid: None,
        };
        assert_eq!(
            properties.to_string(),
            "RemoteProperties(real_device='CPU', renderer=('tinygrad.renderer.cstyle', \
             'ClangRenderer', ()), offset_supported=True, graph_supported=True, \
             graph_supports_multi=False, ib_gid=None)"
        );
        let gid = RemoteProperties { ib_gid: Some([0xfe; 16]), ..properties }.to_string();
        assert!(gid.ends_with(&format!("ib_gid=b'{}')", r"\xfe".repeat(16))), "{gid}");
    }

    #[test]
    fn exception_is_printed_as_the_reference_does() {
        assert_eq!(
            RemoteException { message: "it's\nbad" }.to_string(),
            r#"RemoteException(exc=RuntimeError("it's\nbad"), trace='')"#
        );
    }

    #[test]
    fn seconds_are_printed_as_python_does() {
        assert_eq!(Seconds(1.2e-5).to_string(), "1.2e-05");
        assert_eq!(Seconds(0.25).to_string(), "0.25");
    }
}
