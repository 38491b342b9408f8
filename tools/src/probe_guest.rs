//! The probe guest that the binary carries.
//!
//! `build.rs` builds it from `guest/`; what it does is told in
//! `guest/README.md`.

/// The probe guest's ELF image: bootable by PVH and by direct long-mode entry.
pub static PROBE_GUEST: &[u8] = include_bytes!(env!("ROMULUS_PROBE_GUEST"));

#[cfg(test)]
mod tests {
    use super::PROBE_GUEST;

    #[test]
    fn it_is_a_static_64_bit_elf_program_for_x86() {
        assert_eq!(&PROBE_GUEST[..4], b"\x7fELF");
        let (class, data) = (PROBE_GUEST[4], PROBE_GUEST[5]);
        assert_eq!((class, data), (2, 1), "ELFCLASS64, little-endian");
        let half = |at: usize| u16::from_le_bytes([PROBE_GUEST[at], PROBE_GUEST[at + 1]]);
        assert_eq!((half(16), half(18)), (2, 62), "ET_EXEC, EM_X86_64");
    }
}
