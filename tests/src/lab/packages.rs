//! Debian packages, fetched with apt and unpacked into a cache.
//!
//! ```text
//!   CACHE/packages/NAME_VERSION/    what `dpkg-deb --extract` made of it
//! ```
//!
//! A version that is there is never fetched again, and a folder is there whole
//! or not at all. Nothing is installed.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::tool::{APT_CACHE, APT_GET, DPKG_DEB, ToolError};

/// Why there is no package.
#[derive(Debug, Error)]
pub enum PackageError {
    /// apt's lists do not have it.
    #[error(
        "apt knows no package `{0}`: run `apt-get update` as root; if it stays unknown, add Debian's main archive of this release to apt's sources"
    )]
    Unknown(String),
    /// It could not be fetched or unpacked.
    #[error("{0}: can apt reach its archives? try `apt-get update` as root")]
    Fetch(#[source] ToolError),
    /// It has not what a package of its kind has.
    #[error(
        "package `{package}` has no {what}: this release of Debian is one that the lab does not know"
    )]
    Content {
        /// The package.
        package: String,
        /// What was looked for.
        what: String,
    },
    /// The cache's own files.
    #[error("cannot {action}: {source}: is there room and permission?")]
    System {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A package, unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Debian's name.
    pub name: String,
    /// Debian's version.
    pub version: String,
    /// Its files, as if this were `/`.
    pub folder: PathBuf,
}

impl Package {
    /// Names this content: what was made of it can be kept under this name.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}_{}", self.name, self.version)
    }

    /// The file at `path` below its root.
    ///
    /// # Errors
    ///
    /// [`PackageError::Content`] if there is none.
    pub fn file(&self, path: &str) -> Result<PathBuf, PackageError> {
        let file = self.folder.join(path);
        if file.exists() {
            return Ok(file);
        }
        Err(PackageError::Content { package: self.id(), what: path.to_owned() })
    }
}

/// The cache, and what apt knows.
#[derive(Debug)]
pub struct Packages {
    folder: PathBuf,
    catalogue: Catalogue,
}

impl Packages {
    /// A cache in `cache`, which is made if need be.
    ///
    /// # Errors
    ///
    /// [`PackageError`]
    pub fn open(cache: &Path) -> Result<Self, PackageError> {
        let folder = cache.join("packages");
        fs::create_dir_all(&folder).map_err(system("make the lab's cache"))?;
        Ok(Self { folder, catalogue: Catalogue::read()? })
    }

    /// The package `name` in the version that apt would install.
    ///
    /// # Errors
    ///
    /// [`PackageError`]
    pub fn get(&mut self, name: &str) -> Result<Package, PackageError> {
        let record = self.record(name)?;
        self.unpacked(&record)
    }

    /// The package that the empty package `name` stands for: its dependency
    /// whose name begins with `prefix`.
    ///
    /// # Errors
    ///
    /// [`PackageError`]
    pub fn behind(&mut self, name: &str, prefix: &str) -> Result<Package, PackageError> {
        let record = self.record(name)?;
        match record.depends.iter().find(|dependency| dependency.starts_with(prefix)) {
            Some(real) => self.get(real),
            None => Err(PackageError::Content {
                package: record.name,
                what: format!("dependency {prefix}…"),
            }),
        }
    }

    /// The package `name` and all libraries that it depends on.
    ///
    /// # Errors
    ///
    /// [`PackageError`]
    pub fn with_libraries(&mut self, name: &str) -> Result<Vec<Package>, PackageError> {
        let mut seen = BTreeSet::from([name.to_owned()]);
        let mut wanted = vec![name.to_owned()];
        let mut packages = Vec::new();
        while let Some(name) = wanted.pop() {
            let record = self.record(&name)?;
            packages.push(self.unpacked(&record)?);
            let libraries = record.depends.into_iter().filter(|name| name.starts_with("lib"));
            wanted.extend(libraries.filter(|name| seen.insert(name.clone())));
        }
        Ok(packages)
    }

    fn record(&mut self, name: &str) -> Result<Record, PackageError> {
        if let Some(record) = self.catalogue.find(name) {
            return Ok(record);
        }
        if nix::unistd::geteuid().is_root() {
            // A new machine has no lists yet.
            renew_lists()?;
            self.catalogue = Catalogue::read()?;
        }
        self.catalogue.find(name).ok_or_else(|| PackageError::Unknown(name.to_owned()))
    }

    fn unpacked(&self, record: &Record) -> Result<Package, PackageError> {
        let Record { name, version, .. } = record;
        // Lists of folders are separated by colons.
        let stem = format!("{name}_{}", version.replace(':', "%3a"));
        let folder = self.folder.join(&stem);
        let package =
            Package { name: name.clone(), version: version.clone(), folder: folder.clone() };
        if folder.is_dir() {
            return Ok(package);
        }
        let lock =
            File::create(self.folder.join("lock")).map_err(system("make the cache's lock"))?;
        lock.lock().map_err(system("lock the cache"))?;
        if folder.is_dir() {
            return Ok(package);
        }
        let workshop = self.folder.join(format!("{stem}.new"));
        let _ = fs::remove_dir_all(&workshop);
        fs::create_dir_all(&workshop).map_err(system("make a folder to unpack in"))?;
        let archive = download(&workshop, name, version)?;
        let root = workshop.join("root");
        DPKG_DEB
            .run(&["--extract".as_ref(), archive.as_os_str(), root.as_os_str()])
            .map_err(PackageError::Fetch)?;
        fs::rename(&root, &folder).map_err(system("keep an unpacked package"))?;
        let _ = fs::remove_dir_all(&workshop);
        Ok(package)
    }
}

fn system(action: &str) -> impl FnOnce(io::Error) -> PackageError {
    let action = action.to_owned();
    move |source| PackageError::System { action, source }
}

/// Fetches an archive into `folder`. Lists that are out of date name versions
/// that are gone; they are renewed once.
fn download(folder: &Path, name: &str, version: &str) -> Result<PathBuf, PackageError> {
    let wanted = format!("{name}={version}");
    // apt's own user cannot write here, and apt says so at length.
    let arguments = ["-q", "-o", "APT::Sandbox::User=root", "download", &wanted];
    let fetch = || APT_GET.finish(APT_GET.command().current_dir(folder).args(arguments));
    if let Err(error) = fetch() {
        if !nix::unistd::geteuid().is_root() {
            return Err(PackageError::Fetch(error));
        }
        renew_lists()?;
        fetch().map_err(PackageError::Fetch)?;
    }
    let entries = fs::read_dir(folder).map_err(system("list what was fetched"))?;
    let mut files = entries.flatten().map(|entry| entry.path());
    files.find(|file| file.extension().is_some_and(|ending| ending == "deb")).ok_or_else(|| {
        PackageError::Content { package: name.to_owned(), what: "archive".to_owned() }
    })
}

fn renew_lists() -> Result<(), PackageError> {
    APT_GET.run(&["-q", "update"]).map(drop).map_err(PackageError::Fetch)
}

/// What apt says of a package's candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    name: String,
    version: String,
    /// First choices of `Depends` and `Pre-Depends`, without versions.
    depends: Vec<String>,
}

/// All candidates, as paragraphs. One call for all of them costs what a call
/// for one does: apt reads its lists each time.
#[derive(Debug)]
struct Catalogue(String);

impl Catalogue {
    fn read() -> Result<Self, PackageError> {
        let text = APT_CACHE.run(&["dumpavail"]).map_err(PackageError::Fetch)?;
        Ok(Self(format!("\n{}", String::from_utf8_lossy(&text))))
    }

    fn find(&self, name: &str) -> Option<Record> {
        let begin = self.0.find(&format!("\nPackage: {name}\n"))? + 1;
        let paragraph = &self.0[begin..];
        parse_record(paragraph.split("\n\n").next().unwrap_or(paragraph))
    }
}

/// Reads a paragraph of deb822 (deb-control(5)).
fn parse_record(paragraph: &str) -> Option<Record> {
    let field = |name: &str| {
        let mut lines = paragraph.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let depends = [field("Depends"), field("Pre-Depends")];
    let choices = depends.into_iter().flatten().flat_map(|list| list.split(','));
    let name = |choice: &str| {
        let word = choice.split_whitespace().next()?;
        Some(word.split(':').next()?.to_owned())
    };
    Some(Record {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        depends: choices.filter_map(name).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_choices_of_dependencies_are_read() {
        let text = "Package: redis-tools\nVersion: 5:7.0.15-1\nPre-Depends: libc6 (>= 2.34)\n\
                    Depends: libjemalloc2 (>= 5) | libjemalloc1, lua-cjson:any (>= 2),  adduser\n\
                    Description: Depends: on nothing";
        let record = parse_record(text).unwrap();
        assert_eq!((record.name.as_str(), record.version.as_str()), ("redis-tools", "5:7.0.15-1"));
        assert_eq!(record.depends, ["libjemalloc2", "lua-cjson", "adduser", "libc6"]);
        let catalogue =
            Catalogue(format!("\nPackage: redis\nVersion: 1\n\n{text}\n\nPackage: z\n"));
        assert_eq!(catalogue.find("redis-tools").unwrap(), record);
        assert_eq!(catalogue.find("redis-").map(|record| record.name), None);
        assert_eq!(parse_record("nothing"), None);
    }

    #[test]
    fn what_a_package_lacks_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let package =
            Package { name: "a".into(), version: "1".into(), folder: folder.path().into() };
        let said = package.file("bin/busybox").unwrap_err().to_string();
        assert!(said.contains("a_1") && said.contains("bin/busybox"), "{said}");
    }
}
