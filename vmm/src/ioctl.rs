//! KVM calls that `kvm-ioctls` does not have (or, for the dirty log, has only
//! with an allocation for each call).
//!
//! Numbers and layouts: Linux `Documentation/virt/kvm/api.rst` and
//! `include/uapi/linux/kvm.h`.

use std::{io, os::fd::AsRawFd};

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_device_attr, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1,
    kvm_sregs2, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::{
    ioctl::{
        ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
    },
    ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr,
};

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Reads (and, without manual protection, clears) the dirty bitmap of `slot`.
///
/// # Safety
///
/// `bitmap` has a bit for each page of the slot.
pub(crate) unsafe fn get_dirty_log(vm: &VmFd, slot: u32, bitmap: &mut [u64]) -> io::Result<()> {
    let log = kvm_dirty_log {
        slot,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: bitmap.as_mut_ptr().cast() },
    };
    // SAFETY: KVM writes one bit per page of the slot, rounded up to words; the
    // caller vouches for the bitmap's size.
    check(unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &log) })
}

/// Clears the pages set in `bitmap`, which begins with page `first_page` of
/// `slot`, and protects them again.
pub(crate) fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    page_count: u64,
    bitmap: &mut [u64],
) -> io::Result<()> {
    assert!(page_count.div_ceil(64) as usize <= bitmap.len(), "a bitmap of all pages to clear");
    let log = kvm_clear_dirty_log {
        slot,
        num_pages: u32::try_from(page_count).expect("a slot has fewer than 2^31 pages"),
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bitmap.as_mut_ptr().cast(),
        },
    };
    // SAFETY: KVM reads one bit for each of `num_pages`, checked above.
    check(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &log) })
}

/// Protects the pages of all harvested ring entries again.
pub(crate) fn reset_dirty_rings(vm: &VmFd) -> io::Result<()> {
    // SAFETY: no memory is passed. The value is ignored, but must be there:
    // KVM refuses a leftover argument on some versions.
    check(unsafe { ioctl_with_val(vm, KVM_RESET_DIRTY_RINGS(), 0) })
}

pub(crate) fn get_sregs2(vcpu: &VcpuFd) -> io::Result<kvm_sregs2> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: KVM writes one `kvm_sregs2`.
    check(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) })?;
    Ok(sregs)
}

pub(crate) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> io::Result<()> {
    // SAFETY: KVM reads one `kvm_sregs2`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) })
}

/// Reads the extended state into `area`.
///
/// # Safety
///
/// `area` has at least as many bytes as `KVM_CAP_XSAVE2` tells, or 4096 if it
/// tells none.
pub(crate) unsafe fn get_xsave(vcpu: &VcpuFd, has_xsave2: bool, area: &mut [u8]) -> io::Result<()> {
    let request = if has_xsave2 { KVM_GET_XSAVE2() } else { KVM_GET_XSAVE() };
    // SAFETY: KVM writes as many bytes as its capability says; the caller
    // vouches for the area's size.
    check(unsafe { ioctl_with_mut_ptr(vcpu, request, area.as_mut_ptr()) })
}

/// Sets the extended state from `area`.
///
/// # Safety
///
/// As for [`get_xsave`].
pub(crate) unsafe fn set_xsave(vcpu: &VcpuFd, area: &[u8]) -> io::Result<()> {
    // SAFETY: KVM reads as many bytes as its capability says; the caller
    // vouches for the area's size.
    check(unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), area.as_ptr()) })
}

/// The guest's TSC less the host's (scaled) one; Linux 5.16 and later
/// (`Documentation/virt/kvm/devices/vcpu.rst`, KVM_VCPU_TSC_CTRL).
pub(crate) fn tsc_offset(vcpu: &VcpuFd) -> io::Result<u64> {
    let mut offset = 0_u64;
    let attribute = tsc_offset_at(&raw mut offset);
    // SAFETY: KVM writes the eight bytes that the attribute points to.
    check(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) })?;
    Ok(offset)
}

/// Sets what [`tsc_offset`] tells.
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> io::Result<()> {
    let attribute = tsc_offset_at(&raw mut offset);
    // SAFETY: KVM reads the eight bytes that the attribute points to.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) })
}

fn tsc_offset_at(offset: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: offset as u64,
    }
}

/// The host's TSC.
pub(crate) fn host_tsc() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux lets programs
    // use it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Maps `bytes` of what a vCPU shares with KVM, from page `offset_pages` of its
/// descriptor on; the caller unmaps it.
pub(crate) fn map_vcpu_pages(
    vcpu: &VcpuFd,
    offset_pages: u32,
    bytes: usize,
) -> io::Result<*mut libc::c_void> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            vcpu.as_raw_fd(),
            i64::from(offset_pages) * checkpoint::PAGE_BYTES as i64,
        )
    };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address) }
}
