//! KVM's structures as the bytes that they are.

use kvm_bindings::{
    kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_pit_state2, kvm_regs, kvm_sregs, kvm_sregs2, kvm_vcpu_events, kvm_xcrs,
};

/// # Safety
///
/// Any bytes make a valid value, and a value that began as zeros and was
/// written by KVM has no uninitialised bytes.
pub(super) unsafe trait Plain: Copy + Default {}

macro_rules! plain {
    ($($structure:ty),*) => {$(
        // SAFETY: a `repr(C)` structure of integers whose padding is spelled
        // out as fields (`linux/kvm.h` is written so for all architectures).
        unsafe impl Plain for $structure {}
    )*};
}

plain!(
    kvm_clock_data,
    kvm_debugregs,
    kvm_irqchip,
    kvm_lapic_state,
    kvm_mp_state,
    kvm_msr_entry,
    kvm_pit_state2,
    kvm_regs,
    kvm_sregs,
    kvm_sregs2,
    kvm_vcpu_events,
    kvm_xcrs
);

/// The bytes of all `values`.
pub(super) fn bytes_of<T: Plain>(values: &[T]) -> Vec<u8> {
    // SAFETY: `Plain` says that all bytes are initialised; the length is the
    // slice's own.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }.to_vec()
}

/// The values that `bytes` are, if they are a whole number of them.
pub(super) fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<Vec<T>> {
    if !bytes.len().is_multiple_of(size_of::<T>()) {
        return None;
    }
    let values = bytes.chunks_exact(size_of::<T>()).map(|chunk| {
        // SAFETY: the chunk has the size of `T`, any bytes make a valid `T`,
        // and the read does not ask for alignment.
        unsafe { chunk.as_ptr().cast::<T>().read_unaligned() }
    });
    Some(values.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_back() {
        let entries =
            [1, 2].map(|n| kvm_msr_entry { index: n, reserved: 0, data: u64::from(n) << 40 });
        let bytes = bytes_of(&entries);
        assert_eq!(bytes.len(), 32);
        assert_eq!(from_bytes::<kvm_msr_entry>(&bytes).unwrap(), entries);
        assert!(from_bytes::<kvm_msr_entry>(&bytes[1..]).is_none());
    }
}
