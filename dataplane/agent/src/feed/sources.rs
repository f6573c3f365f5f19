//! The origins that the feed reads, opened once each: both stripes of an image share connections and access tokens.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use faasnet_api::Origin;
use faasnet_origin::{Error, Source};

/// As many as a node has functions; a source that was put out is only opened again.
const MAX_SOURCES: usize = 20;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Sources(Mutex<VecDeque<(Origin, Source)>>);

impl Sources {
    /// The source of `origin`. Opening one reads certificates and the layout's marker, so call it off the async threads.
    pub(super) fn get(&self, origin: &Origin) -> Result<Source, Error> {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, source)) = sources.iter().find(|(known, _)| known == origin) {
            return Ok(source.clone());
        }
        let source = Source::from_origin(origin)?;
        if sources.len() == MAX_SOURCES {
            sources.pop_front();
        }
        sources.push_back((origin.clone(), source.clone()));
        Ok(source)
    }
}
