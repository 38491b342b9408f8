//! A mapping of the page that KVM and user space share for a vCPU (`kvm_run`),
//! for the two fields that are needed beside `KVM_RUN` itself.
//!
//! It is a mapping of its own, so it stays valid whatever becomes of the
//! vCPU's descriptor and thread.

use std::{
    io, ptr,
    sync::atomic::{AtomicU8, Ordering},
};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

use crate::ioctl;

#[derive(Debug)]
pub(super) struct RunPage {
    run: *mut kvm_run,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value; its fields are accessed only as
// atomics or volatile.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    pub(super) fn map(vcpu: &VcpuFd, bytes: usize) -> io::Result<Self> {
        assert!(bytes >= size_of::<kvm_run>(), "KVM's run page holds a kvm_run");
        Ok(Self { run: ioctl::map_vcpu_pages(vcpu, 0, bytes)?.cast(), bytes })
    }

    /// Makes `KVM_RUN` return `EINTR` at once, or not.
    pub(super) fn set_immediate_exit(&self, on: bool) {
        // SAFETY: the field is one byte of the mapping, which KVM reads once
        // per entry and others access only as an atomic.
        let flag = unsafe { AtomicU8::from_ptr(ptr::addr_of_mut!((*self.run).immediate_exit)) };
        flag.store(u8::from(on), Ordering::SeqCst);
    }

    /// Bytes of each item of the port access that the vCPU left KVM for.
    pub(super) fn io_item_bytes(&self) -> usize {
        // SAFETY: within the mapping; after KVM_EXIT_IO this union field is
        // the one in use, and any bit pattern is a valid u8.
        let size = unsafe { ptr::addr_of!((*self.run).__bindgen_anon_1.io.size).read_volatile() };
        usize::from(size).max(1)
    }

    /// After an internal error: its number, and the instruction's bytes if it
    /// is a failed emulation that tells them.
    pub(super) fn internal_error(&self) -> (u32, Vec<u8>) {
        const EMULATION: u32 = 1;
        const HAS_INSTRUCTION_BYTES: u64 = 1;
        // SAFETY: within the mapping; after KVM_EXIT_INTERNAL_ERROR these are
        // the union fields in use, and any bit pattern is valid.
        let failure = unsafe {
            ptr::addr_of!((*self.run).__bindgen_anon_1.emulation_failure).read_volatile()
        };
        if failure.suberror != EMULATION || failure.ndata == 0 {
            return (failure.suberror, Vec::new());
        }
        if failure.flags & HAS_INSTRUCTION_BYTES == 0 {
            return (failure.suberror, Vec::new());
        }
        // SAFETY: the union has one field, plain bytes.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let len = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
        (failure.suberror, instruction.insn_bytes[..len].to_vec())
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `map`, and nothing else has it.
        unsafe { libc::munmap(self.run.cast(), self.bytes) };
    }
}
