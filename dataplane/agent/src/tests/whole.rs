//! A real agent, worker and all: as a root it brings an image from a layout into its store.

use super::admin::{RESIZE, request};
use super::*;
use crate::test_support::{claims, controller_key, digest, layout};
use faasnet_api::{Claims, PublicKey};

/// Catches a feed and a worker that do not understand each other, in one stripe or two, and blobs that come out other than they went in.
#[tokio::test(flavor = "multi_thread")]
async fn a_root_fetches_serves_and_keeps() {
    for stripes in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let (blobs, descriptor) = layout(&folder.path().join("layout"), &[1, 0, (9 << 20) + 1, 4 << 20, (4 << 20) - 1]);
        let mut controller = Controller::start().await;
        let settings = config(&folder.path().join("store"), controller.address);
        let agent = crate::Agent::start(settings.clone()).await.unwrap();
        let (admin, node) = (agent.admin_address(), agent.node_id());
        assert!(agent.data_address().port() != 0);
        let (shutdown, asked) = oneshot::channel::<()>();
        let running = tokio::spawn(agent.run_until(async { drop(asked.await) }));

        let (mut session, attached) = controller.accepted().await;
        assert_eq!(attached.node_id, node.to_vec());
        let v1::command::Command::Assign(mut order) = assign(1, &descriptor, true) else { unreachable!() };
        let node_key = PublicKey::try_from(&attached.public_key[..]).unwrap();
        let claims = Claims { node, node_key, function: function(), ..claims(descriptor.id()) };
        order.ticket = controller_key().issue(claims).as_bytes().to_vec();
        order.stripes = vec![order.stripes[0].clone(); stripes];
        session.command(v1::command::Command::Assign(order)).await;
        let progress = session.progress(v1::FunctionState::Complete).await;
        let bytes = descriptor.geometry().image_bytes();
        assert_eq!((progress.bytes_present, progress.bytes_received, progress.bytes_refetched), (bytes, bytes, 0));
        for blob in &blobs {
            let (status, body, _) = request(admin, "GET", &format!("{RESIZE}/blobs/{}", digest(blob))).await;
            assert!(status == 200 && body == *blob);
        }
        drop(shutdown);
        within("the agent's end", running).await.unwrap().unwrap();
        let store = faasnet_store::Store::open(&settings.store_dir, None).unwrap();
        assert!(store.held()[0].complete, "the image survives the agent");
    }
}
