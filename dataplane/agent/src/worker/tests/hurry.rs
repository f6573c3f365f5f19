//! A block for which somebody waits is asked for out of turn, up the tree.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Catches a wait that the parent does not hear of, a request that a node in the middle keeps to itself, and one that is repeated.
#[tokio::test]
async fn a_wait_is_heard_of_two_levels_up() {
    const WAITED_FOR: BlockIndex = BlockIndex(9);
    let image = Image::new(&[3 << 20]);
    let (mut middle, mut leaf) = (Node::start(Engine::Auto).await, Node::start(Engine::Auto).await);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let root = Target::Node(NodeId([0xaa; 16]), listener.local_addr().unwrap());
    middle.assign(&image, 1, &[(root, &[], &[leaf.id()])]);
    leaf.assign(&image, 1, &[(middle.target(), &[], &[])]);
    let blocks = (0..image.geometry().blocks()).map(BlockIndex);
    let rest: Vec<u8> = blocks.filter(|block| *block != WAITED_FOR).flat_map(|block| image.frame(block)).collect();
    let (first, encoded) = (image.frame(WAITED_FOR), image.descriptor.encode());
    let serving = std::thread::spawn(move || {
        let (mut parent, _) = Stranger::accept(&listener);
        parent.write(&wire::encode_path(Kind::Welcome, &[NodeId([0xaa; 16])]));
        parent.write(&wire::encode_descriptor(&encoded));
        while parent.read().0.kind != Kind::Want {}
        let (heard, mut says) = (Arc::new(AtomicBool::new(false)), parent.stream.try_clone().unwrap());
        let until = heard.clone();
        let waiting = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                says.write_all(&wire::encode_waiting(wire::WaitingFor::Origin)).unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let (request, _) = parent.read();
        heard.store(true, Ordering::Relaxed);
        waiting.join().unwrap();
        parent.write(&first);
        parent.write(&rest);
        // The child ends the connection when it has everything; what it says before is all that it said.
        parent.stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut more = Vec::new();
        // Ignored: a connection that is reset has ended too.
        let _ = parent.stream.read_to_end(&mut more);
        (request, more)
    });
    middle.until("open", |report| report.bytes_total > 0).await;
    leaf.until("open", |report| report.bytes_total > 0).await;
    for _ in 0..3 {
        let (function, image) = (image.function, image.id());
        leaf.worker.send(WorkerCommand::Hurry { function, image, blocks: vec![WAITED_FOR] }).unwrap();
    }
    middle.complete(&image).await;
    leaf.complete(&image).await;
    let (request, more) = serving.join().unwrap();
    assert_eq!((request.kind, request.chunk, request.block), (Kind::Request, 0, WAITED_FOR.0));
    assert!(more.is_empty(), "asked for once, and then {more:?}");
}
