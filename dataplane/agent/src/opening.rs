//! One image that the store is asked to open, with what is needed to ask again.
//!
//! The control side asks and waits for no answer; a blocking thread runs [`Opening::run`].

use std::sync::Arc;

use faasnet_api::{Descriptor, FunctionId, ImageId};
use faasnet_store::{Store, StoreError, StoredImage};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) function: FunctionId,
    pub(crate) image: ImageId,
    pub(crate) tenant: String,
    /// The encoded descriptor; `None`: only if the store holds the image.
    pub(crate) descriptor: Option<Vec<u8>>,
    /// The worker asked, by `DescriptorArrived`, and waits for the answer.
    pub(crate) for_worker: bool,
    /// How many functions the worker had let go when this was asked.
    pub(crate) drops: u64,
}

/// Why an image was not opened.
#[derive(Debug)]
pub(crate) enum Unopened {
    /// Another tenant has it open here. If that one's function is being dropped, it has not for long.
    OtherTenant(String),
    /// It cannot be held here.
    Failed(String),
}

impl Opening {
    /// Opens the image: by its descriptor if there is one, else if the store holds it. `None`: the store does not hold it.
    pub(crate) fn run(&self, store: &Store) -> Result<Option<Arc<StoredImage>>, Unopened> {
        let failed = |error: StoreError| match error {
            StoreError::OtherTenant(_) => Unopened::OtherTenant(error.to_string()),
            error => Unopened::Failed(error.to_string()),
        };
        let Some(bytes) = &self.descriptor else {
            let held = store.open_held(self.image).map_err(failed)?;
            // Another tenant's copy must not spare this one the fetch: having the id does not mean being allowed to have the image.
            return Ok(held.filter(|stored| stored.tenant() == self.tenant));
        };
        let descriptor = Descriptor::decode(bytes, self.image).map_err(|error| Unopened::Failed(error.to_string()))?;
        store.open_image(&self.tenant, Arc::new(descriptor)).map(Some).map_err(failed)
    }
}
