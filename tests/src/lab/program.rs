//! A dynamic program, the libraries that it needs and the loader that finds
//! them: all that is needed to run it somewhere else.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    image::{ImageError, system},
    packages::Package,
    tool::ToolError,
};

/// Where the x86-64 ABI wants the loader, below the root.
pub(super) const LOADER: &str = "lib64/ld-linux-x86-64.so.2";
const LOADER_NAME: &str = "ld-linux-x86-64.so.2";
/// Where Debian has libraries, below the root.
const LIBRARY_FOLDERS: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// A program with all that it needs.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) file: PathBuf,
    pub(super) loader: PathBuf,
    pub(super) libraries: Vec<PathBuf>,
}

impl Program {
    /// A program that runs on this machine, with this machine's libraries.
    pub(super) fn of_this_machine(file: &Path) -> Result<Self, ImageError> {
        Self::resolve(file, &Path::new("/").join(LOADER), &[])
    }

    /// The program at `path` in one of `packages`, with libraries of theirs
    /// and of no others.
    pub(super) fn in_packages(packages: &[Package], path: &str) -> Result<Self, ImageError> {
        let find = |path: &str| {
            let mut files = packages.iter().map(|package| package.folder.join(path));
            files.find(|file| file.exists())
        };
        let missing =
            |what: &str| ImageError::Library { program: path.to_owned(), library: what.to_owned() };
        let file = find(path).ok_or_else(|| missing(path))?;
        // In a package, the ABI's path may be a link that leads out of it.
        let loaders = LIBRARY_FOLDERS.map(|folder| format!("{folder}/{LOADER_NAME}"));
        let loader = loaders.iter().find_map(|path| find(path));
        let loader = loader.ok_or_else(|| missing(LOADER_NAME))?;
        let folders = |package: &Package| LIBRARY_FOLDERS.map(|path| package.folder.join(path));
        let folders: Vec<PathBuf> = packages.iter().flat_map(folders).collect();
        let program = Self::resolve(&file, &loader, &folders)?;
        let foreign = program
            .libraries
            .iter()
            .find(|library| !folders.iter().any(|folder| library.starts_with(folder)));
        match foreign {
            Some(library) => Err(missing(&name(library))),
            None => Ok(program),
        }
    }

    fn resolve(file: &Path, loader: &Path, folders: &[PathBuf]) -> Result<Self, ImageError> {
        let mut command = Command::new(loader);
        if !folders.is_empty() {
            let path = std::env::join_paths(folders).map_err(|_| ImageError::Library {
                program: name(file),
                library: "libraries in folders without a colon".to_owned(),
            })?;
            command.arg("--library-path").arg(path);
        }
        let output = command
            .arg("--list")
            .arg(file)
            .output()
            .map_err(system(format!("run {}", loader.display())))?;
        if !output.status.success() {
            let command = format!("{} --list {}", loader.display(), file.display());
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(ToolError::Failed { command, said }.into());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let libraries = listed(&text)
            .map_err(|library| ImageError::Library { program: name(file), library })?;
        Ok(Self { file: file.to_owned(), loader: loader.to_owned(), libraries })
    }
}

/// The files that a loader lists; the error is a library that it did not find.
fn listed(text: &str) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for line in text.lines() {
        let Some((library, place)) = line.trim().split_once(" => ") else { continue };
        let place = place.split(" (0x").next().unwrap_or(place);
        if place == "not found" {
            return Err(library.to_owned());
        }
        // The loader lists itself under the name that the program asks for.
        if !library.contains("ld-linux") {
            files.push(PathBuf::from(place));
        }
    }
    Ok(files)
}

/// The last part of a path.
pub(super) fn name(path: &Path) -> String {
    path.file_name().map(OsString::from).unwrap_or_default().to_string_lossy().into_owned()
}

/// The commands that a busybox has.
pub(super) fn applets(busybox: &Path) -> Result<Vec<String>, ImageError> {
    let output = Command::new(busybox)
        .arg("--list")
        .output()
        .map_err(system(format!("run {}", busybox.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loaders_list_is_read() {
        let text = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 => /x/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(listed(text).unwrap(), [PathBuf::from("/lib/libc.so.6")]);
        assert_eq!(listed("\tlibm.so.6 => not found\n").unwrap_err(), "libm.so.6");
    }

    #[test]
    fn this_test_needs_a_c_library() {
        let test = std::env::current_exe().unwrap();
        let program = Program::of_this_machine(&test).unwrap();
        assert!(program.libraries.iter().any(|library| name(library) == "libc.so.6"));
    }
}
