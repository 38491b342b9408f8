//! The backup's image: memory, saved state and last words of a committed epoch.
//!
//! Contents are applied in the order of their epochs and chunks, each epoch
//! whole. Whatever could be wrong with them was found when they were decoded,
//! but for one thing: a delta that builds on other content than is here. That
//! means that the image is not what the primary takes it for. It is then
//! broken, and must be given up: a broken image is never promoted.

use thiserror::Error;

use crate::{
    PAGE_BYTES, PageNumber, PageRun, SectionError, Sections,
    chunk::{Content, News, PageContent},
    delta::{self, DeltaError},
    output::Output,
};

/// Where pages are kept: a guest's memory, or a simulated one.
pub trait PageStore {
    /// Copies the pages of `run` to `to`, which is as long.
    fn read(&self, run: PageRun, to: &mut [u8]);
    /// Makes `from`, which is as long, the content of the pages of `run`.
    fn write(&self, run: PageRun, from: &[u8]);
    /// Makes the pages of `run` zero.
    fn zero(&self, run: PageRun);
}

/// The image is not what the primary takes it for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BrokenImage {
    /// A page differs from what a delta builds on.
    #[error("page {page} is not what the primary takes it for: the image is broken")]
    Page {
        /// Which.
        page: PageNumber,
        /// What the delta said.
        source: DeltaError,
    },
    /// The saved state differs from what its delta builds on.
    #[error("the saved state is not what the primary takes it for: the image is broken")]
    State(#[source] DeltaError),
    /// The saved state, patched, is none.
    #[error("the saved state is malformed after a delta: the image is broken")]
    Sections(#[from] SectionError),
}

/// What a promotion goes on from, beside memory.
#[derive(Debug, Default)]
pub struct Image {
    /// The saved state as it was encoded: what deltas build on.
    encoded: Vec<u8>,
    sections: Sections,
    outputs: Vec<Output>,
}

impl Image {
    /// An image whose saved state is `sections`, and whose last words were said.
    #[must_use]
    pub fn of(sections: Sections) -> Self {
        Self { encoded: sections.encode(), sections, outputs: Vec::new() }
    }

    /// The saved state of the last epoch.
    #[must_use]
    pub fn sections(&self) -> &Sections {
        &self.sections
    }

    /// What the guest said in the last epoch.
    #[must_use]
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// An epoch begins to be applied: its words take the place of the last's.
    pub fn begin_epoch(&mut self) {
        self.outputs.clear();
    }

    /// Applies one piece of content.
    ///
    /// # Errors
    ///
    /// [`BrokenImage`]; nothing of the image may be used afterwards.
    pub fn apply(&mut self, content: Content, store: &impl PageStore) -> Result<(), BrokenImage> {
        match content {
            Content::Pages(pages) => apply_pages(&pages, store)?,
            Content::Sections(sections) => {
                self.encoded = sections.encode();
                self.sections = sections;
            }
            Content::SectionsDelta(delta) => {
                delta::apply(&delta, &mut self.encoded).map_err(BrokenImage::State)?;
                self.sections = Sections::decode(&self.encoded)?;
            }
            Content::Outputs(outputs) => self.outputs.extend(outputs),
        }
        Ok(())
    }
}

/// Applies new content of pages.
///
/// # Errors
///
/// [`BrokenImage::Page`]
pub fn apply_pages(pages: &PageContent, store: &impl PageStore) -> Result<(), BrokenImage> {
    let mut page = [0; PAGE_BYTES];
    for (run, news) in pages.news() {
        match news {
            News::Zero => store.zero(run),
            News::Data(content) => store.write(run, content),
            News::Delta(delta) => {
                store.read(run, &mut page);
                delta::apply(delta, &mut page)
                    .map_err(|source| BrokenImage::Page { page: run.first, source })?;
                store.write(run, &page);
            }
        }
    }
    Ok(())
}
