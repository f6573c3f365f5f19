//! Which of several images is meant.

use std::collections::BTreeMap;

use super::catalogue::{Blob, Image};
use super::settings::OnMiss;
use super::*;
use faasnet_origin::RegistryReference;

/// Two functions with one tag and a layer in common: an operator's, and one with two layers that is half here.
struct Pair {
    catalogue: Catalogue,
    inputs: mpsc::Receiver<Input>,
    /// By id.
    images: BTreeMap<FunctionId, Arc<StoredImage>>,
    whole: FunctionId,
    _view: watch::Sender<Arc<View>>,
    _folder: tempfile::TempDir,
}

fn pair() -> Pair {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("store"), None).unwrap();
    let open = |lengths: &[usize], present: &dyn Fn(&StoredImage) -> std::ops::Range<u32>| {
        let (blobs, descriptor) = image(lengths, registry());
        let stored = store.open_image("t", Arc::new(renamed(&descriptor, "r.example/app:1"))).unwrap();
        present(&stored).for_each(|block| arrive(&stored, &blobs, block));
        stored
    };
    let half = open(&[2 * BLOCK, 40 * BLOCK], &|stored| stored.geometry().entry_blocks(1));
    let whole = open(&[2 * BLOCK], &|stored| stored.geometry().entry_blocks(0));
    let (a, b) = (FunctionId::new("t", "a"), FunctionId::new("t", "b"));
    let rows = [(a, row(&half, ReportState::Fetching)), (b, row(&whole, ReportState::Complete))];
    let (view, reader) = watch::channel(Arc::new(View { rows: rows.into(), ..View::default() }));
    let (sender, inputs) = mpsc::channel(16);
    let misses = Misses { on_miss: OnMiss::Register, register_wait: DEADLINE, ..Misses::default() };
    let catalogue = Catalogue { view: reader, inputs: sender, misses };
    Pair { catalogue, inputs, images: [(a, half), (b, whole)].into(), whole: b, _view: view, _folder: folder }
}

/// Catches an answer of the controller that does not count because another function has the name too.
#[tokio::test]
async fn the_controller_says_which() {
    let mut pair = pair();
    let reference = RegistryReference::parse("r.example/app:1").unwrap();
    for (function, stored) in &pair.images {
        let control = async {
            let Some(Input::Image { answer, .. }) = pair.inputs.recv().await else { panic!("nobody was asked") };
            answer.send(Ok(*function)).unwrap();
        };
        let (found, ()) = tokio::join!(pair.catalogue.image(&reference), control);
        let Ok(Image::Held(found)) = found else { panic!("{found:?}") };
        assert_eq!(found.function, *function);
        assert!(Arc::ptr_eq(&found.stored, stored));
    }
}

/// Catches a layer that is here and is waited for, because a bigger image has it too.
#[tokio::test]
async fn a_layer_is_taken_from_where_it_is() {
    let pair = pair();
    let reference = RegistryReference::parse("r.example/app").unwrap();
    let digest = &pair.images[&pair.whole].descriptor().entries()[0].digest;
    let Some(Blob::Held(found, entry)) = pair.catalogue.blob(&reference, digest).await else { panic!("unknown") };
    assert_eq!((found.function, entry), (pair.whole, 0));
}
