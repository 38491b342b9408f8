//! A stock Linux guest for rehearsals, which does what the probe guest does:
//! this very program is its first process.
//!
//! ```text
//!   on the host                                   in the guest
//!
//!   kernel (bzImage) ─────────────────────────▶   Linux
//!   modules ──────┐                                 │ /init internal linux-probe
//!   this program ─┼─▶ initramfs ──────────────▶   probe: mounts, modules, an address
//!   its libraries ┘                                 ├─ service: UDP port 7000
//!        image                                      └─ workers: dirty pages, and check them
//! ```
//!
//! Guest and bare-metal probe guest are told the same on their command lines
//! and speak the same protocol (`guest/README.md`), so a client needs not know
//! which one it asks.

pub mod image;
pub mod probe;
