//! Guests that a lab can protect. Another one is another value of [`Guest`].

use romulus::rehearsal::netns::GUEST_ADDRESS;

use super::materials::Boot;

/// Where the lab's disk is in its machines.
pub(super) const DISK: &str = "/lab";
/// What saves a nested kernel a second of its boot, and keeps its clock.
const LINUX_CMDLINE: &str = "console=ttyS0 panic=-1 mitigations=off nokaslr audit=0 no_timer_check \
                             tsc=reliable random.trust_cpu=on";

/// A guest, as VM.toml describes it.
#[derive(Debug, Clone)]
pub struct Guest {
    /// RAM.
    pub memory_mib: u32,
    /// vCPUs.
    pub vcpus: u16,
    /// The kernel's command line.
    pub cmdline: String,
    /// What it says on its console when it serves.
    pub ready: &'static str,
    kernel: Option<Boot>,
}

impl Guest {
    /// The built-in probe guest, dirtying memory as `work` says.
    #[must_use]
    pub fn probe(memory_mib: u32, vcpus: u16, work: &str) -> Self {
        let cmdline = format!("probe.vcpus={vcpus} probe.ip={GUEST_ADDRESS}/24 {work}");
        Self { memory_mib, vcpus, cmdline, ready: "ready vcpus=", kernel: None }
    }

    /// A stock Linux with a redis server. `more` is added to its command line.
    #[must_use]
    pub fn linux(boot: Boot, memory_mib: u32, vcpus: u16, more: &str) -> Self {
        let cmdline = format!("{LINUX_CMDLINE} lab.ip={GUEST_ADDRESS}/24 {more}");
        let ready = "Ready to accept connections";
        Self { memory_mib, vcpus, cmdline, ready, kernel: Some(boot) }
    }

    /// Its kernel and initial file system, if it has its own.
    #[must_use]
    pub fn boot(&self) -> Option<&Boot> {
        self.kernel.as_ref()
    }

    /// The section `[vm]` of its configuration.
    #[must_use]
    pub fn section(&self, name: &str) -> String {
        let Self { memory_mib, vcpus, cmdline, kernel, .. } = self;
        let files = match kernel {
            None => "kernel = \"probe\"\n".to_owned(),
            Some(_) => {
                format!("kernel = \"{DISK}/guest/vmlinuz\"\ninitrd = \"{DISK}/guest/initrd\"\n")
            }
        };
        format!(
            "[vm]\nname = \"{name}\"\nmemory_mib = {memory_mib}\nvcpus = {vcpus}\n{files}cmdline = \"{cmdline}\"\n"
        )
    }
}
