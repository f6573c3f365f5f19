//! One image that the store is asked to open, with what is needed to ask again.
//!
//! The control side asks and waits for no answer; a blocking thread runs [`Opening::run`].

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use faasnet_api::{Descriptor, FunctionId, ImageId};
use faasnet_store::{Store, StoreError, StoredImage};

/// How long whoever reads a copy of an image that was let go (a response of the mirror that is being cut) may take to notice.
const LINGERS: Duration = Duration::from_millis(300);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(10);

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
        let (descriptor, deadline) = (Arc::new(descriptor), Instant::now() + LINGERS);
        loop {
            match store.open_image(&self.tenant, descriptor.clone()) {
                Err(StoreError::OtherTenant(_)) if Instant::now() < deadline => thread::sleep(LOOK),
                opened => return opened.map(Some).map_err(failed),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::image;
    use faasnet_api::Origin;

    /// Catches an image that fails for good because the tenant before was read for a moment longer than it held it, and one that two
    /// tenants have.
    #[test]
    fn a_last_reader_of_the_tenant_before_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), None).unwrap();
        let (_, descriptor) = image(&[100], Origin::Layout { path: "/nowhere".into() });
        let held = store.open_image("before", descriptor.clone()).unwrap();
        let opening = Opening {
            function: FunctionId::new("t", "f"),
            image: descriptor.id(),
            tenant: "t".into(),
            descriptor: Some(descriptor.encode()),
            for_worker: false,
            drops: 0,
        };
        assert!(matches!(opening.run(&store), Err(Unopened::OtherTenant(_))));
        let opened = thread::scope(|scope| {
            let opened = scope.spawn(|| opening.run(&store));
            drop(held);
            opened.join().unwrap()
        });
        assert_eq!(opened.unwrap().unwrap().tenant(), "t");
    }
}
