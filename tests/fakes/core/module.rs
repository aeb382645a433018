//! Loading of modules: binaries of the fake compilers, and PTX text.

use std::path::PathBuf;

use super::image::{Image, MAGIC, PtxError, ptx};
use super::native::Library;
use super::{Code, Outcome, State, code};

/// No image is longer.
const IMAGE_BYTES_MAX: usize = 64 << 20;

impl State {
    /// Loads what begins at `image`; the message is what the driver's compiler says.
    ///
    /// # Safety
    ///
    /// The image is text or a fake binary that ends in a zero byte.
    pub(crate) unsafe fn module_load(&mut self, image: *const u8) -> Result<u64, (Code, String)> {
        let silent = |code| (code, String::new());
        self.context().map_err(silent)?;
        if image.is_null() {
            return Err(silent(code::INVALID_VALUE));
        }
        let is_there = |&at: &usize| {
            // SAFETY: the bytes up to the zero byte are there.
            let place = unsafe { image.add(at) };
            // SAFETY: nothing behind the zero byte is read.
            unsafe { place.read() != 0 }
        };
        let count = (0..IMAGE_BYTES_MAX).take_while(is_there).count();
        // SAFETY: these bytes have just been read.
        let bytes = unsafe { std::slice::from_raw_parts(image, count) };
        let image = self.image(bytes)?;
        let is_real = |folder: &&PathBuf| !image.source.is_empty() && folder.is_absolute();
        let library = match self.config.native.as_ref().filter(is_real) {
            Some(folder) => {
                Some(Library::build(&image, folder).map_err(|log| (code::NO_BINARY_FOR_GPU, log))?)
            }
            None => None,
        };
        self.module_add(image, library).map_err(silent)
    }

    fn image(&self, bytes: &[u8]) -> Result<Image, (Code, String)> {
        let arch = &self.config.arch;
        if bytes.starts_with(MAGIC) {
            let image = Image::from_bytes(bytes).ok_or((code::INVALID_IMAGE, String::new()))?;
            self.fits(&image).map_err(|code| (code, String::new()))?;
            return Ok(image);
        }
        let is_text = crate::FACE.has_contexts && std::str::from_utf8(bytes).is_ok();
        if !is_text || bytes.is_empty() {
            return Err((code::INVALID_IMAGE, String::new()));
        }
        ptx(&String::from_utf8_lossy(bytes), arch).map_err(|error| match error {
            PtxError::Text(log) => (code::INVALID_PTX, log),
            PtxError::Version => (code::UNSUPPORTED_PTX_VERSION, String::new()),
            PtxError::Target => (code::NO_BINARY_FOR_GPU, String::new()),
        })
    }

    /// Whether a binary is for this device: features that it does not name may be on or off.
    fn fits(&self, image: &Image) -> Outcome<()> {
        let (own, theirs) = (&self.config.arch, &image.arch);
        let mut features = theirs.split(':');
        let same = features.next() == own.split(':').next()
            && features.all(|feature| own.split(':').any(|own| own == feature));
        if same { Ok(()) } else { Err(code::NO_BINARY_FOR_GPU) }
    }
}
