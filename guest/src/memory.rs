//! Who owns which memory, and the page tables for what lies above 4 GiB.
//!
//! ```text
//! 0x8000            trampoline for application processors
//! 1 MiB             image: code, data, stacks, buffers
//! then              page-table pages for RAM above 4 GiB
//! largest range     version table (16 bytes a page) | working set | fill
//! all other ranges  fill
//! ```
//! Invariant: the areas do not overlap; version table and working set share no page, so a page and
//! the version it should have never travel together.

use core::sync::atomic::{AtomicU64, Ordering};

use romulus_probe::{Params, Record};

use crate::cpu;
use crate::fatal::refuse;
use crate::platform::{Platform, RANGES_MAX, Range};
use crate::set_once::SetOnce;

const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;
/// Memory that the top-level table entry we use can map.
const MAPPED_MAX: u64 = 512 * GIB;
/// Working set reserved unless the command line says otherwise: 1 GiB, or half of small memory.
const WORKING_SET_PAGES_DEFAULT: u64 = 262_144;

unsafe extern "C" {
    static image_end: u8;
    static mut boot_pdpt: [u64; 512];
}

/// What the table keeps of a working-set page.
#[repr(C)]
pub(crate) struct PageRecord {
    /// Version of the header word; 0: never written.
    pub(crate) version: AtomicU64,
    /// See [`Record::whole`].
    pub(crate) whole: AtomicU64,
}

impl PageRecord {
    pub(crate) fn load(&self) -> Record {
        let version = self.version.load(Ordering::Relaxed);
        Record { version, whole: self.whole.load(Ordering::Relaxed) }
    }

    pub(crate) fn store(&self, record: Record) {
        self.whole.store(record.whole, Ordering::Relaxed);
        self.version.store(record.version, Ordering::Relaxed);
    }
}

/// The plan of memory.
pub(crate) struct Memory {
    ram_pages: u64,
    low_end: u64,
    table: u64,
    working_set: Range,
    fill: [Range; RANGES_MAX],
    fill_pages: u64,
}

static MEMORY: SetOnce<Memory> = SetOnce::new();

/// Maps and divides memory; called once, on the first vCPU.
pub(crate) fn init(platform: &Platform, params: &Params) -> &'static Memory {
    let mut fill = [Range::default(); RANGES_MAX];
    for (slot, range) in fill.iter_mut().zip(platform.ram()) {
        // Below 1 MiB live the trampoline and what the firmware left.
        let start = range.start.max(1 << 20);
        let end = range.end.min(MAPPED_MAX);
        *slot = if start < end { Range { start, end } } else { Range::default() };
    }
    let image_end_address = (&raw const image_end) as u64;
    let Some(home) =
        fill.iter_mut().find(|range| range.start <= 1 << 20 && range.end > image_end_address)
    else {
        refuse(format_args!("no RAM at 1 MiB for the image"));
    };
    home.start = image_end_address;
    map_high(platform, home);
    let (table, working_set) = reserve_working_set(&mut fill, params);
    let memory = Memory {
        ram_pages: platform.ram().iter().map(|range| range.pages()).sum(),
        low_end: platform
            .ram()
            .iter()
            .map(|range| range.end)
            .filter(|end| *end <= 4 * GIB)
            .max()
            .unwrap_or(0),
        table,
        working_set,
        fill_pages: if params.fill { fill.iter().map(|range| range.pages()).sum() } else { 0 },
        fill,
    };
    MEMORY.set(memory)
}

impl Memory {
    pub(crate) fn get() -> &'static Self {
        MEMORY.get()
    }

    pub(crate) fn ram_mib(&self) -> u64 {
        // Rounded, as firmware keeps a little of it.
        self.ram_pages.div_ceil(256)
    }

    /// Where RAM below 4 GiB ends.
    pub(crate) fn low_end(&self) -> u64 {
        self.low_end
    }

    pub(crate) fn working_set_pages(&self) -> u64 {
        self.working_set.pages()
    }

    /// The first word of a working-set page.
    pub(crate) fn page(&self, page: u64) -> *mut u64 {
        assert!(page < self.working_set.pages());
        (self.working_set.start + page * 4096) as *mut u64
    }

    pub(crate) fn record(&self, page: u64) -> &PageRecord {
        assert!(page < self.working_set.pages());
        // SAFETY: the table has a record per page, lies in RAM that only it uses, was zeroed by
        // `reserve_working_set`, and records consist of atomics.
        unsafe { &*(self.table as *const PageRecord).add(page as usize) }
    }

    /// Pages in the fill area; 0 without `probe.fill=1`.
    pub(crate) fn fill_pages(&self) -> u64 {
        self.fill_pages
    }

    /// Address of a fill page by its ordinal.
    pub(crate) fn fill_page(&self, mut ordinal: u64) -> u64 {
        for range in &self.fill {
            if ordinal < range.pages() {
                return range.start + ordinal * 4096;
            }
            ordinal -= range.pages();
        }
        panic!("fill page out of range");
    }
}

/// Adds 2 MiB pages for RAM above 4 GiB, with tables taken from the home range.
fn map_high(platform: &Platform, home: &mut Range) {
    let top = platform.ram().iter().map(|range| range.end).max().unwrap_or(0).min(MAPPED_MAX);
    for gib in 4..top.div_ceil(GIB) {
        let table = home.start as *mut u64;
        home.start += 4096;
        if home.start >= home.end {
            refuse(format_args!("no room for page tables"));
        }
        for entry in 0..512 {
            let address = gib * GIB + entry * LARGE_PAGE;
            // SAFETY: the page was just taken from RAM that nobody else owns.
            unsafe { table.add(entry as usize).write_volatile(address | 0x87) };
        }
        // SAFETY: `gib` is below 512; the entry was not present, so no translation is cached.
        unsafe { (&raw mut boot_pdpt[gib as usize]).write_volatile(table as u64 | 7) };
    }
    cpu::reload_page_tables();
}

/// Takes table and working set from the largest range.
fn reserve_working_set(fill: &mut [Range], params: &Params) -> (u64, Range) {
    let largest = fill.iter_mut().max_by_key(|range| range.pages()).expect("not empty");
    let wanted = params
        .working_set_pages_max
        .unwrap_or_else(|| WORKING_SET_PAGES_DEFAULT.min(largest.pages() / 2));
    let table_pages = (wanted * size_of::<PageRecord>() as u64).div_ceil(4096);
    if wanted + table_pages > largest.pages() {
        refuse(format_args!(
            "probe.wsmax={wanted} does not fit; the largest range has {} pages",
            largest.pages()
        ));
    }
    let table = largest.start;
    let start = table + table_pages * 4096;
    let working_set = Range { start, end: start + wanted * 4096 };
    largest.start = working_set.end;
    // SAFETY: RAM that nobody else owns; mapped by now. Firmware may have left something in it.
    unsafe { (table as *mut u8).write_bytes(0, (table_pages * 4096) as usize) };
    (table, working_set)
}
