//! From the sections of an object to an image of memory.
//!
//! Safe code over bytes: where each section goes, what each symbol means, and what each relocation
//! writes. Nothing in the object is trusted; an honest one has disjoint sections, so all work here
//! is bounded by its length.
//!
//! The image: code, then stubs; from the next page on constants, then the table of addresses (GOT).

use std::collections::HashMap;

use object::elf;
use object::read::elf::{ElfFile64, ElfSection64, ElfSymbol64};
use object::{
    LittleEndian, Object, ObjectSection, ObjectSymbol, Relocation, RelocationFlags,
    RelocationTarget, SectionFlags, SectionIndex, SymbolFlags,
};

use super::{LoadError, Name, runtime};

pub(super) type File<'data> = ElfFile64<'data, LittleEndian>;
type Section<'data, 'file> = ElfSection64<'data, 'file, LittleEndian>;
type Symbol<'data, 'file> = ElfSymbol64<'data, 'file, LittleEndian>;

/// Alignment of a section. Vectors ask for 64, and code for less.
const ALIGN_MAX: u64 = 4096;
const PAGE_BYTES: usize = 4096;

/// Bytes of an image: an object's, and what alignment adds.
const IMAGE_BYTES_MAX: usize = 2 * super::OBJECT_BYTES_MAX;

/// A jump through an address beside it: `jmp [rip + 2]`, two bytes of padding, the address. It
/// carries a call over any distance, which a relocated call of 32 bits cannot.
const STUB_BYTES: usize = 16;
const STUB_HEAD: [u8; 8] = [0xff, 0x25, 2, 0, 0, 0, 0xcc, 0xcc];

/// A slot of the table of addresses.
const SLOT_BYTES: usize = 8;

/// Bytes of a relocation entry in the file.
const RELOCATION_BYTES: usize = size_of::<elf::Rela64<LittleEndian>>();

/// A section's place in the image.
#[derive(Clone, Copy)]
struct Place {
    offset: usize,
    bytes: usize,
    executable: bool,
}

/// Where everything goes.
pub(super) struct Layout {
    sections: HashMap<SectionIndex, Place>,
    stubs: usize,
    table: usize,
    /// Code and stubs, in whole pages.
    pub(super) code_bytes: usize,
    /// All, in whole pages.
    pub(super) bytes: usize,
}

impl Layout {
    /// Places the sections that a kernel needs and refuses those that it does not.
    pub(super) fn of(file: &File<'_>, object_bytes: usize) -> Result<Layout, LoadError> {
        let mut plan = Plan { sections: HashMap::new(), end: 0, budget: object_bytes, slots: 0 };
        plan.add(file, true)?;
        let stubs = plan.end.next_multiple_of(STUB_BYTES);
        let stubs_bytes = file.symbols().filter(ObjectSymbol::is_undefined).count() * STUB_BYTES;
        let code_bytes = (stubs + stubs_bytes).next_multiple_of(PAGE_BYTES);
        plan.end = code_bytes;
        plan.add(file, false)?;
        let table = plan.end.next_multiple_of(SLOT_BYTES);
        let bytes = (table + plan.slots * SLOT_BYTES).next_multiple_of(PAGE_BYTES);
        Ok(Layout { sections: plan.sections, stubs, table, code_bytes, bytes })
    }

    /// Offset of the kernel: the one function that the object offers to others.
    pub(super) fn entry(&self, file: &File<'_>) -> Result<usize, LoadError> {
        let is_entry = |symbol: &Symbol<'_, '_>| {
            let SymbolFlags::Elf { st_info, .. } = symbol.flags() else { return false };
            symbol.is_definition()
                && st_info.st_type() == elf::STT_FUNC
                && matches!(st_info.st_bind(), elf::STB_GLOBAL | elf::STB_WEAK)
        };
        let entries: Vec<_> = file.symbols().filter(is_entry).collect();
        let [entry] = &entries[..] else {
            return Err(LoadError::Entries { count: entries.len() });
        };
        let (place, offset) = self.definition(entry)?;
        if !place.executable || offset == place.bytes {
            return Err(symbol_error(entry, "a function that is not in the code"));
        }
        Ok(place.offset + offset)
    }

    /// The section of a defined symbol and the symbol's offset there, at most the section's length.
    fn definition(&self, symbol: &Symbol<'_, '_>) -> Result<(Place, usize), LoadError> {
        let place = symbol
            .section_index()
            .and_then(|index| self.sections.get(&index))
            .ok_or_else(|| symbol_error(symbol, "not in a section that is loaded"))?;
        let offset = usize::try_from(symbol.address()).ok().filter(|&o| o <= place.bytes);
        let offset = offset.ok_or_else(|| symbol_error(symbol, "past the end of its section"))?;
        Ok((*place, offset))
    }
}

/// A layout in the making.
struct Plan {
    sections: HashMap<SectionIndex, Place>,
    end: usize,
    /// Bytes of the object that no section or relocation has claimed yet.
    budget: usize,
    slots: usize,
}

impl Plan {
    fn add(&mut self, file: &File<'_>, executable: bool) -> Result<(), LoadError> {
        for section in file.sections() {
            let refuse = |what| LoadError::Section { name: section_name(&section), what };
            let Some(is_code) = role(&section).map_err(refuse)? else { continue };
            if is_code != executable {
                continue;
            }
            let align = section.align().max(1);
            if !align.is_power_of_two() || align > ALIGN_MAX {
                return Err(refuse("an alignment that is no power of two up to 4096"));
            }
            let align = usize::try_from(align).map_err(|_| refuse("alignment"))?;
            let bytes = section.data()?.len();
            self.claim(bytes).ok_or_else(|| refuse("overlaps others"))?;
            let offset = self.end.next_multiple_of(align);
            self.end = offset + bytes;
            if self.end > IMAGE_BYTES_MAX {
                return Err(refuse("too much memory for the size of the object"));
            }
            self.sections.insert(section.index(), Place { offset, bytes, executable });
            for (_, relocation) in section.relocations() {
                self.claim(RELOCATION_BYTES).ok_or_else(|| refuse("relocations overlap others"))?;
                self.slots += usize::from(matches!(kind(&relocation), Ok(Kind::Slot)));
            }
        }
        Ok(())
    }

    fn claim(&mut self, bytes: usize) -> Option<()> {
        self.budget = self.budget.checked_sub(bytes)?;
        Some(())
    }
}

/// Whether a section is code (`true`), constants (`false`) or not loaded at all.
fn role(section: &Section<'_, '_>) -> Result<Option<bool>, &'static str> {
    let SectionFlags::Elf { sh_type, sh_flags } = section.flags() else {
        return Err("no ELF section");
    };
    let has = |flag: elf::SectionFlags| sh_flags.0 & flag.0 != 0;
    // Names, symbols, relocations; gcc's and clang's notes; tables for unwinding, which nobody does
    // here; and the empty sections that gcc always writes.
    let unused = matches!(sh_type, elf::SHT_NOTE | elf::SHT_X86_64_UNWIND)
        || matches!(section.name_bytes(), Ok(b".eh_frame"));
    if !has(elf::SHF_ALLOC) || unused || (section.size() == 0 && !has(elf::SHF_EXECINSTR)) {
        return Ok(None);
    }
    // Addresses in constants, which only the loader writes.
    let relocated_constant =
        section.name_bytes().is_ok_and(|name| name.starts_with(b".data.rel.ro"));
    if has(elf::SHF_TLS) {
        Err("thread-local data")
    } else if sh_type != elf::SHT_PROGBITS {
        Err("neither code nor constants (a variable, or a constructor)")
    } else if has(elf::SHF_COMPRESSED) {
        Err("compressed")
    } else if has(elf::SHF_WRITE) && (has(elf::SHF_EXECINSTR) || !relocated_constant) {
        Err("writable data")
    } else {
        Ok(Some(has(elf::SHF_EXECINSTR)))
    }
}

/// What a relocation writes.
#[derive(Clone, Copy)]
enum Kind {
    /// The target's address, 8 bytes.
    Absolute,
    /// The distance to the target, 4 bytes.
    Relative,
    /// The distance to a slot that holds the target's address, 4 bytes.
    Slot,
}

fn kind(relocation: &Relocation) -> Result<Kind, LoadError> {
    let RelocationFlags::Elf { r_type } = relocation.flags() else {
        return Err(LoadError::NotRelocatable);
    };
    match r_type {
        elf::R_X86_64_64 => Ok(Kind::Absolute),
        elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => Ok(Kind::Relative),
        elf::R_X86_64_GOTPCREL | elf::R_X86_64_GOTPCRELX | elf::R_X86_64_REX_GOTPCRELX => {
            Ok(Kind::Slot)
        }
        kind => Err(LoadError::Relocation { kind: kind.0, what: "no kernel needs it" }),
    }
}

/// Makes the image of an object that is going to lie at `base`.
pub(super) fn link(file: &File<'_>, layout: &Layout, base: usize) -> Result<Vec<u8>, LoadError> {
    let image = vec![0; layout.bytes];
    let (stubs, slots) = (HashMap::new(), HashMap::new());
    let mut linker = Linker { file, layout, base, image, stubs, slots };
    for section in file.sections() {
        if let Some(place) = layout.sections.get(&section.index()) {
            linker.image[place.offset..][..place.bytes].copy_from_slice(section.data()?);
        }
    }
    for section in file.sections() {
        let Some(&place) = layout.sections.get(&section.index()) else { continue };
        for (offset, relocation) in section.relocations() {
            linker.relocate(place, offset, &relocation)?;
        }
    }
    Ok(linker.image)
}

struct Linker<'l, 'data> {
    file: &'l File<'data>,
    layout: &'l Layout,
    base: usize,
    image: Vec<u8>,
    /// Stubs by the address they jump to.
    stubs: HashMap<usize, usize>,
    /// Slots by the address they hold. Both tables map to addresses.
    slots: HashMap<usize, usize>,
}

impl Linker<'_, '_> {
    fn relocate(
        &mut self,
        place: Place,
        offset: u64,
        relocation: &Relocation,
    ) -> Result<(), LoadError> {
        let kind = kind(relocation)?;
        let raw = match relocation.flags() {
            RelocationFlags::Elf { r_type } => r_type.0,
            _ => 0,
        };
        let refuse = |what| LoadError::Relocation { kind: raw, what };
        if relocation.has_implicit_addend() {
            return Err(refuse("without an addend"));
        }
        let target = match kind {
            Kind::Slot => {
                let target = self.target(relocation)?;
                self.slot(target)
            }
            Kind::Absolute | Kind::Relative => self.target(relocation)?,
        };
        let bytes = if matches!(kind, Kind::Absolute) { 8 } else { 4 };
        let outside = || refuse("outside its section");
        let offset = usize::try_from(offset).map_err(|_| outside())?;
        let end = offset.checked_add(bytes).filter(|&end| end <= place.bytes);
        let range = place.offset + offset..place.offset + end.ok_or_else(outside)?;
        let value = target.cast_signed().wrapping_add(signed(relocation.addend()));
        if matches!(kind, Kind::Absolute) {
            self.image[range].copy_from_slice(&value.to_le_bytes());
            return Ok(());
        }
        let here = (self.base + range.start).cast_signed();
        let distance = i32::try_from(value.wrapping_sub(here)).map_err(|_| refuse("too far"))?;
        self.image[range].copy_from_slice(&distance.to_le_bytes());
        Ok(())
    }

    /// Address of what a relocation refers to: a place in the image, or a stub that jumps to a
    /// function of the runtime.
    fn target(&mut self, relocation: &Relocation) -> Result<usize, LoadError> {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            let kind = u32::MAX;
            return Err(LoadError::Relocation { kind, what: "refers to no symbol" });
        };
        let symbol = self.file.symbol_by_index(index)?;
        let SymbolFlags::Elf { st_info, .. } = symbol.flags() else {
            return Err(LoadError::NotRelocatable);
        };
        if matches!(st_info.st_type(), elf::STT_GNU_IFUNC | elf::STT_TLS) {
            return Err(symbol_error(&symbol, "resolved at run time"));
        }
        if !symbol.is_undefined() {
            let (place, offset) = self.layout.definition(&symbol)?;
            return Ok(self.base + place.offset + offset);
        }
        let name = symbol.name_bytes()?;
        let function = std::str::from_utf8(name).ok().and_then(runtime::find);
        let function = function.ok_or_else(|| LoadError::Undefined { name: Name::new(name) })?;
        Ok(self.stub(function.addr()))
    }

    /// A stub in the image for a function outside. The layout has room for one per undefined
    /// symbol, and there are no more functions than that.
    fn stub(&mut self, function: usize) -> usize {
        let next = self.layout.stubs + self.stubs.len() * STUB_BYTES;
        *self.stubs.entry(function).or_insert_with(|| {
            let stub = &mut self.image[next..][..STUB_BYTES];
            stub[..8].copy_from_slice(&STUB_HEAD);
            stub[8..].copy_from_slice(&function.to_le_bytes());
            self.base + next
        })
    }

    /// A slot of the table. The layout has room for one per relocation that asks for one.
    fn slot(&mut self, target: usize) -> usize {
        let next = self.layout.table + self.slots.len() * SLOT_BYTES;
        *self.slots.entry(target).or_insert_with(|| {
            self.image[next..][..SLOT_BYTES].copy_from_slice(&target.to_le_bytes());
            self.base + next
        })
    }
}

fn signed(addend: i64) -> isize {
    isize::try_from(addend).expect("x86-64 has 64-bit addresses")
}

fn section_name(section: &Section<'_, '_>) -> Name {
    Name::new(section.name_bytes().unwrap_or_default())
}

fn symbol_error(symbol: &Symbol<'_, '_>, what: &'static str) -> LoadError {
    LoadError::Symbol { name: Name::new(symbol.name_bytes().unwrap_or_default()), what }
}
