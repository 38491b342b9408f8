//! Files and networks that a process may still reach: landlock.
//!
//! Rules hold the files themselves, not their names. A file that others replace
//! by renaming (a kernel, `resolv.conf`) is therefore allowed by its folder.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, make_bitflags,
};

use super::Needs;

/// What is asked for; an older kernel gives what it has.
pub(super) const WANTED: ABI = ABI::V6;

/// Allows what `needs` names and nothing else. Returns how much of landlock is in
/// force; 0 for none.
pub(super) fn restrict(needs: &Needs) -> Result<u32, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .scope(Scope::AbstractUnixSocket | Scope::Signal)?
        .create()?;
    let look = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let change = make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate});
    let own = look | change | make_bitflags!(AccessFs::{MakeReg | RemoveFile});
    let sockets = make_bitflags!(AccessFs::{ReadDir | MakeSock | RemoveFile});
    let allowed = [
        (&needs.read, look),
        (&needs.write, change | AccessFs::IoctlDev),
        (&needs.folders, own),
        (&needs.socket_folders, sockets),
    ];
    for (paths, access) in allowed {
        for path in paths {
            rules = allow(rules, path, access)?;
        }
    }
    for port in &needs.tcp_ports {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    let status = rules.restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => 0,
        (_, LandlockStatus::Available { effective_abi, .. }) => {
            (effective_abi as u32).min(WANTED as u32)
        }
        (_, LandlockStatus::NotEnabled | LandlockStatus::NotImplemented) => 0,
    })
}

/// What is not there needs no rule.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(file) => {
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(WANTED) };
            rules.add_rule(PathBeneath::new(file, access))
        }
        Err(_) => Ok(rules),
    }
}

/// How much of landlock this kernel has, up to what is asked for; 0 for none.
pub(super) fn available() -> u32 {
    let versions = [ABI::V6, ABI::V5, ABI::V4, ABI::V3, ABI::V2, ABI::V1];
    let has = |version: &ABI| {
        let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let rules = rules.handle_access(AccessFs::from_all(*version)).and_then(|rules| {
            if *version >= ABI::V4 {
                rules.handle_access(AccessNet::from_all(ABI::V4))
            } else {
                Ok(rules)
            }
        });
        let rules = rules.and_then(|rules| {
            if *version >= ABI::V6 { rules.scope(Scope::from_all(ABI::V6)) } else { Ok(rules) }
        });
        rules.and_then(Ruleset::create).is_ok()
    };
    versions.into_iter().find(has).map_or(0, |version| version as u32)
}

/// The folders that hold `path` by the name that is given and by its own.
pub(super) fn folders_of(path: &Path) -> Vec<PathBuf> {
    let folder = |path: &Path| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        folder.unwrap_or(Path::new(".")).to_owned()
    };
    let mut folders = vec![folder(path)];
    if let Ok(own) = path.canonicalize() {
        folders.push(folder(&own));
    }
    folders
}
