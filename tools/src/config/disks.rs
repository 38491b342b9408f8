//! `[[disks]]`: the guest's disks, and who may have which.
//!
//! Writes are not replicated yet. So a guest that other nodes may take over can
//! only have disks that it does not write.

use std::path::PathBuf;

use super::{
    error::Fault,
    host_files::HostFiles,
    section::{Found, Section},
    types::{Disk, DiskDigest, DiskSerial},
};

/// Most disks of a guest: with a network and an entropy device they fit the
/// machine's slots.
pub(super) const DISKS_MAX: usize = 8;

/// Reads the sections; `protected` says whether other nodes may take the guest
/// over.
pub(super) fn parse(
    sections: Vec<Section<'_>>,
    files: &HostFiles,
    protected: bool,
) -> Result<Vec<Disk>, Fault> {
    let mut disks: Vec<Disk> = Vec::new();
    for (index, mut section) in sections.into_iter().enumerate() {
        let path = section.path_required("path", "path = \"/srv/web-1.img\"")?;
        let serial: Option<Found<DiskSerial>> = section.parsed("serial", "serial = \"disk-0\"")?;
        let read_only = section.flag("read_only", false)?;
        let digests = [
            ("auto", DiskDigest::Auto),
            ("all", DiskDigest::All),
            ("samples", DiskDigest::Samples),
        ];
        let digest = section.choice("digest", &digests, DiskDigest::Auto)?;
        section.finish()?;
        if index == DISKS_MAX {
            return Err(path.fault(
                format!("is one disk too many, {DISKS_MAX} are possible"),
                "join what belongs together in one image",
            ));
        }
        if protected && !read_only {
            return Err(path.fault(
                "is a disk that the guest may write, and writes are not replicated yet",
                "set `read_only = true`, or remove [[peers]] and run the guest unprotected",
            ));
        }
        let disk = Disk {
            path: files.image(&path, read_only)?,
            read_only,
            serial: serial
                .as_ref()
                .map_or_else(|| DiskSerial::of_disk(index), |found| found.value.clone()),
            digest,
        };
        check_apart(&disk, &path, serial.as_ref(), &disks)?;
        disks.push(disk);
    }
    Ok(disks)
}

/// No two disks may have one serial, nor one image if either is written.
fn check_apart(
    disk: &Disk,
    path: &Found<PathBuf>,
    serial: Option<&Found<DiskSerial>>,
    others: &[Disk],
) -> Result<(), Fault> {
    let shares = |other: &&Disk| other.path == disk.path && !(other.read_only && disk.read_only);
    if let Some(other) = others.iter().find(shares) {
        return Err(path.fault(
            format!("is the image of disk {}, too", other.serial),
            "give each disk an image of its own, or make both read-only",
        ));
    }
    if others.iter().any(|other| other.serial == disk.serial) {
        let problem = format!("{} is another disk's serial", disk.serial);
        let remedy = "give each disk a serial of its own";
        return Err(match serial {
            Some(found) => found.fault(problem, remedy),
            None => path.fault(problem, remedy),
        });
    }
    Ok(())
}
