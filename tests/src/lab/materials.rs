//! What a lab is made of: kernels, programs and images, from the cache or made
//! and fetched now.

use std::path::{Path, PathBuf};

use super::{
    image::{ImageError, Images},
    kernel::Kernel,
    packages::{Package, Packages},
};

/// Debian's kernels for virtual machines, as the packages that name the newest
/// of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// The release's own.
    Stock,
    /// The one that Debian keeps beside it: 6.12 for Debian 12.
    Newer,
}

impl Series {
    fn package(self) -> &'static str {
        match self {
            Self::Stock => "linux-image-cloud-amd64",
            Self::Newer => "linux-image-6.12-cloud-amd64",
        }
    }
}

/// Everything that is the same for all labs.
#[derive(Debug)]
pub struct Materials {
    packages: Packages,
    images: Images,
    /// What the lab's machines run.
    pub kernel: Kernel,
}

/// A kernel and the initial file system that belongs to it.
#[derive(Debug, Clone)]
pub struct Boot {
    /// As `uname -r` says.
    pub release: String,
    /// The bzImage.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
}

impl Materials {
    /// Fetches what every lab needs into `cache`, where it is kept.
    ///
    /// # Errors
    ///
    /// [`ImageError`]
    pub fn gather(cache: &Path) -> Result<Self, ImageError> {
        let mut packages = Packages::open(cache)?;
        let images = Images::open(cache, packages.get("busybox-static")?)?;
        let kernel = kernel(&mut packages, Series::Stock)?;
        Ok(Self { packages, images, kernel })
    }

    /// What the lab's machines boot.
    ///
    /// # Errors
    ///
    /// [`ImageError`]
    pub fn host(&self) -> Result<Boot, ImageError> {
        Ok(boot(&self.kernel, self.images.host(&self.kernel)?))
    }

    /// What a Linux guest boots: a kernel of `series`, and Debian's redis.
    ///
    /// # Errors
    ///
    /// [`ImageError`]
    pub fn guest(&mut self, series: Series) -> Result<Boot, ImageError> {
        let kernel = kernel(&mut self.packages, series)?;
        let redis: Vec<Package> = self.packages.with_libraries("redis-tools")?;
        Ok(boot(&kernel, self.images.guest(&kernel, &redis)?))
    }

    /// Writes the disk of a lab's machines: see [`Images::disk`].
    ///
    /// # Errors
    ///
    /// [`ImageError`]
    pub fn disk(&self, romulus: &Path, folder: &Path, disk: &Path) -> Result<(), ImageError> {
        self.images.disk(romulus, folder, disk)
    }
}

fn kernel(packages: &mut Packages, series: Series) -> Result<Kernel, ImageError> {
    Ok(Kernel::new(packages.behind(series.package(), "linux-image-")?)?)
}

fn boot(kernel: &Kernel, initrd: PathBuf) -> Boot {
    Boot { release: kernel.release.clone(), kernel: kernel.image.clone(), initrd }
}
