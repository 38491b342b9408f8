//! What this host's KVM can do: `vmm` asks it, this tells it.

use std::io;

use vmm::host::{Backend, Host, HostError, ModelOffer, model::ModelError};

use super::{Finding, fail, ok, warn};

/// Most features that are named in one line.
const NAMED_MAX: usize = 6;

pub(super) fn examine() -> Vec<Finding> {
    match Host::open() {
        Ok(host) => usable(&host),
        Err(error) => vec![unusable(&error)],
    }
}

fn unusable(error: &HostError) -> Finding {
    let name = "/dev/kvm";
    match error {
        HostError::Open(source) => {
            let remedy = match source.kind() {
                io::ErrorKind::PermissionDenied => "add this user to the group `kvm`, or use sudo",
                _ => {
                    "load kvm_intel or kvm_amd, and turn virtualisation on in the firmware (in a VM: nested virtualisation)"
                }
            };
            fail(name, source.to_string(), remedy)
        }
        HostError::Ask { source, .. } => fail(
            name,
            format!("{error}: {source}"),
            "see `dmesg`, and whether this user may lock memory and make VMs",
        ),
        HostError::Version(_) | HostError::Missing { .. } | HostError::Model(_) => {
            fail(name, error.to_string(), "use Linux 5.16 or later on x86-64")
        }
    }
}

fn usable(host: &Host) -> Vec<Finding> {
    let capabilities = host.capabilities();
    let mut findings = vec![
        ok("/dev/kvm", "usable"),
        ok("KVM backend", capabilities.backend.name()),
        bare_metal_guests(),
        stock_linux_guests(capabilities.backend),
        ok("vCPUs", format!("up to {} in a VM", capabilities.vcpus_max)),
        ok("extended state", format!("{} bytes of a vCPU", capabilities.xsave_bytes)),
    ];
    for capability in capabilities.list() {
        findings.push(if capability.available {
            ok(capability.name, "there")
        } else {
            warn(capability.name, "not there", capability.reason)
        });
    }
    let (least, most) = capabilities.tsc_khz_possible();
    let possible = format!("{} kHz; guests may have {least} to {most}", capabilities.tsc_khz);
    findings.push(ok("TSC frequency", possible));
    match host.models() {
        Ok(models) => findings.extend(cpu_models(&models)),
        Err(error) => findings.push(unusable(&error)),
    }
    match host.masked() {
        Ok(masked) => {
            let names: Vec<_> = masked.iter().map(|feature| feature.to_string()).collect();
            findings.push(ok("masked from guests", some(&names)));
        }
        Err(error) => findings.push(unusable(&error)),
    }
    findings
}

fn bare_metal_guests() -> Finding {
    ok(
        "bare-metal guests",
        "yes, the built-in probe among them: at CPL0 it keeps to what every KVM knows",
    )
}

fn stock_linux_guests(backend: Backend) -> Finding {
    let (name, guests) = ("stock Linux guests", backend.guests());
    if guests.stock_linux {
        return ok(name, format!("yes, bzImage or ELF by PVH: {}", guests.reason));
    }
    warn(
        name,
        format!("no: {}", guests.reason),
        "for Linux guests use a host with VT-x or AMD-V (in a VM: nested virtualisation)",
    )
}

fn cpu_models(offers: &[ModelOffer]) -> Vec<Finding> {
    let offered: Vec<_> = offers
        .iter()
        .filter(|offer| offer.provided.is_ok())
        .map(|offer| offer.model.to_string())
        .collect();
    let mut findings = vec![ok("CPU models", offered.join(", "))];
    let refused: Vec<_> = offers
        .iter()
        .filter_map(|ModelOffer { model, provided }| match provided {
            Ok(()) => None,
            Err(ModelError::Vendor { .. }) => Some(format!("{model} is another vendor's")),
            Err(ModelError::Lacking { lacking, .. }) => {
                Some(format!("{model} needs {}", some(lacking)))
            }
        })
        .collect();
    if !refused.is_empty() {
        findings.push(ok("CPU models not here", refused.join("; ")));
    }
    findings
}

/// The first few of `names`.
fn some(names: &[String]) -> String {
    if names.is_empty() {
        return "nothing".to_owned();
    }
    let mut shown = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(" ");
    if let Some(more) = names.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        shown.push_str(&format!(" and {more} more"));
    }
    shown
}

#[cfg(test)]
mod tests {
    use vmm::host::model::CpuModel;

    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_kvm_that_cannot_be_used_says_what_to_do() {
        let missing = HostError::Missing { name: "KVM_CAP_IRQCHIP", reason: "interrupts" };
        let open = |kind| HostError::Open(io::Error::from(kind));
        for (error, remedy) in [
            (missing, "Linux 5.16"),
            (open(io::ErrorKind::PermissionDenied), "group `kvm`"),
            (open(io::ErrorKind::NotFound), "load kvm_intel"),
        ] {
            let finding = unusable(&error);
            assert_eq!(finding.verdict, Verdict::Fail);
            assert!(finding.remedy.contains(remedy), "{finding:?}");
        }
    }

    #[test]
    fn models_are_told_with_what_they_need() {
        let model = |name: &str| name.parse::<CpuModel>().unwrap();
        let lacking: Vec<_> = (0..8).map(|n| format!("f{n}")).collect();
        let zen4 = model("amd-zen4");
        let told = cpu_models(&[
            ModelOffer { model: CpuModel::HOST, provided: Ok(()) },
            ModelOffer { model: zen4, provided: Err(ModelError::Lacking { model: zen4, lacking }) },
        ]);
        assert_eq!(told[0].found, "host");
        assert_eq!(told[1].found, "amd-zen4 needs f0 f1 f2 f3 f4 f5 and 2 more");
    }

    #[test]
    fn guests_are_told_with_the_reason() {
        let finding = stock_linux_guests(Backend::Svm);
        assert_eq!(finding.verdict, Verdict::Ok);
        assert!(finding.found.contains("bzImage") && finding.found.contains("PVH"), "{finding:?}");
        for backend in [Backend::Pvm, Backend::Unknown] {
            let finding = stock_linux_guests(backend);
            assert_eq!(finding.verdict, Verdict::Warn);
            assert!(finding.found.starts_with("no: "), "{finding:?}");
        }
        let told = stock_linux_guests(Backend::Pvm).found;
        assert!(told.contains("pvm interprets code at CPL0"), "{told}");
    }
}
