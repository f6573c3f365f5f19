//! All movers on all drivers must deliver the same bytes: a parent that cuts its frames anywhere, pauses, and dies in the middle; children
//! that read by fits and starts, leave at any moment and come back for the rest. Seeded: a failure names its seed, and
//! `FAASNET_SEED=… cargo test` repeats it (as far as threads can be repeated).

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use faasnet_ring::{DriverKind, probe};

use super::*;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to `end` - 1.
    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end.max(1)
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Mostly nothing, sometimes a moment, rarely longer than an attached child may hold the stream back.
    fn pause(&mut self) {
        let millis = match self.below(200) {
            0 => 60 + self.below(60),
            1..10 => self.below(5),
            _ => return,
        };
        std::thread::sleep(Duration::from_millis(millis as u64));
    }
}

/// An image with blocks and entries of random sizes, short last blocks among them.
fn image(random: &mut Random) -> Arc<Image> {
    let block_bytes = 1 << (14 + random.below(5));
    let mut lengths: Vec<usize> = (0..3 + random.below(4)).map(|_| random.below(3 << 20)).collect();
    lengths.extend([random.below(20), block_bytes as usize * random.below(4), block_bytes as usize + 1]);
    Arc::new(Image::with_blocks(&lengths, block_bytes))
}

/// Serves connections as a parent until `stop`; the first `deaths` of them end somewhere in the middle.
fn parent(
    node: NodeId,
    listener: TcpListener,
    image: Arc<Image>,
    mut random: Random,
    mut deaths: usize,
    stop: Arc<AtomicBool>,
) -> JoinHandle<()> {
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(DEADLINE)).unwrap();
                    let dies = deaths > 0;
                    deaths -= usize::from(dies);
                    // Ignored: the node may leave at any moment, and this parent may.
                    let _ = feed(node, stream, &image, &mut random, dies);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    })
}

fn feed(node: NodeId, mut stream: TcpStream, image: &Image, random: &mut Random, dies: bool) -> io::Result<()> {
    stream.write_all(&Challenge { node, nonce: [7; 32] }.encode())?;
    let (_, hello) = read_frame(&mut stream, random)?;
    stream.write_all(&wire::encode_path(Kind::Welcome, &[node]))?;
    if Hello::parse(&hello).unwrap().wants_descriptor {
        stream.write_all(&wire::encode_descriptor(&image.descriptor.encode()))?;
    }
    let mut bitmap = Vec::new();
    loop {
        let (frame, part) = read_frame(&mut stream, random)?;
        bitmap.extend_from_slice(&part);
        if frame.kind == Kind::Want && frame.block == 1 {
            break;
        }
    }
    let owed: Vec<BlockIndex> = BlockSet::from_bitmap(image.geometry().blocks(), &bitmap).iter().collect();
    let last = if dies { random.below(owed.len()) } else { owed.len() };
    for (sent, block) in owed.into_iter().enumerate() {
        if random.one_in(6) {
            stream.write_all(&wire::encode_path(Kind::Path, &[node]))?;
        }
        let frame = image.frame(block);
        if sent == last {
            return stream.write_all(&frame[..random.below(frame.len())]);
        }
        write_in_parts(&mut stream, &frame, random)?;
    }
    while read_frame(&mut stream, random).is_ok() {}
    Ok(())
}

fn write_in_parts(stream: &mut TcpStream, mut bytes: &[u8], random: &mut Random) -> io::Result<()> {
    while !bytes.is_empty() {
        let len = match random.below(3) {
            0 => 1 + random.below(40),
            1 => 1 + random.below(5000),
            _ => bytes.len(),
        };
        let (part, rest) = bytes.split_at(len.min(bytes.len()));
        stream.write_all(part)?;
        bytes = rest;
        random.pause();
    }
    Ok(())
}

fn read_frame(stream: &mut TcpStream, random: &mut Random) -> io::Result<(Frame, Vec<u8>)> {
    let mut header = [0; wire::HEADER_BYTES];
    stream.read_exact(&mut header)?;
    let frame = Frame::parse(&header).unwrap();
    let mut payload = vec![0; frame.len as usize];
    let mut filled = 0;
    while filled < payload.len() {
        let end = payload.len().min(filled + 1 + random.below(100_000));
        filled += match stream.read(&mut payload[filled..end])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            read => read,
        };
        random.pause();
    }
    Ok((frame, payload))
}

/// Takes the image from `address` as the child `node`, leaving up to `departures` times; what it got is right, or it says which block is not.
fn child(
    node: NodeId,
    address: SocketAddr,
    image: Arc<Image>,
    mut random: Random,
    mut departures: usize,
) -> JoinHandle<Result<(), String>> {
    std::thread::spawn(move || {
        let deadline = Instant::now() + DEADLINE;
        let mut missing = BlockSet::new(image.geometry().blocks());
        for block in 0..image.geometry().blocks() {
            missing.insert(BlockIndex(block));
        }
        while !missing.is_empty() {
            if Instant::now() > deadline {
                return Err(format!("child {} still lacks {} blocks", node.short(), missing.count()));
            }
            let leaves_after = if departures > 0 { random.below(1 + missing.count() as usize) } else { usize::MAX };
            departures = departures.saturating_sub(1);
            match take(node, address, &image, &mut missing, &mut random, leaves_after) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::InvalidData => return Err(error.to_string()),
                // Its old connection may not be forgotten yet.
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        Ok(())
    })
}

fn take(
    node: NodeId,
    address: SocketAddr,
    image: &Image,
    missing: &mut BlockSet,
    random: &mut Random,
    leaves_after: usize,
) -> io::Result<()> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    if random.one_in(3) {
        // Not below a segment of loopback: the sender would wait for its persist timer each time.
        rustix::net::sockopt::set_socket_recv_buffer_size(&stream, 128 << 10)?;
    }
    let mut stranger = Stranger { stream };
    stranger.greet(&hello_of(image, node));
    stranger.write(&wire::encode_want(&missing.to_bitmap()));
    for taken in 0.. {
        if missing.is_empty() {
            break;
        }
        if taken >= leaves_after {
            // In the middle of whatever comes.
            let mut some = vec![0; random.below(300_000)];
            let _ = stranger.stream.read(&mut some)?;
            break;
        }
        let (frame, payload) = read_frame(&mut stranger.stream, random)?;
        match frame.kind {
            Kind::Block => {}
            Kind::Refused | Kind::Busy => return Err(ErrorKind::ConnectionRefused.into()),
            _ => continue,
        }
        let place = image.geometry().block_at(faasnet_api::ChunkIndex(frame.chunk), frame.block);
        let wrong = |what: &str| io::Error::new(ErrorKind::InvalidData, format!("{what} block in {frame:?}"));
        let block = place.ok_or_else(|| wrong("no such"))?;
        if image.block(block) != payload {
            return Err(wrong("wrong bytes of a"));
        }
        if !missing.remove(block) {
            return Err(wrong("a second time the same"));
        }
    }
    Ok(())
}

async fn run(engine: Engine, kind: DriverKind, seed: u64) {
    let mut random = Random::new(seed);
    let image = image(&mut random);
    let mut node = Node::tuned(engine, Tuning { driver_kind: Some(kind), ..Tuning::default() }).await;
    let stop = Arc::new(AtomicBool::new(false));
    let (parents, children) = ([NodeId([0xaa; 16]), NodeId([0xbb; 16])], [NodeId([0xc1; 16]), NodeId([0xc2; 16])]);
    let mut threads = Vec::new();
    let targets = parents.map(|id| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::Node(id, listener.local_addr().unwrap());
        let deaths = usize::from(id == parents[0]);
        threads.push(parent(id, listener, Arc::clone(&image), Random::new(random.next()), deaths, Arc::clone(&stop)));
        target
    });
    let address = node.worker.data_address();
    let takers = children.map(|id| {
        let departures = random.below(4);
        child(id, address, Arc::clone(&image), Random::new(random.next()), departures)
    });
    node.assign(&image, 1, &[(targets[0], &targets[1..], &children)]);
    let report = node.complete(&image).await;
    assert_eq!((report.blocks_refused, report.bytes_refetched), (0, 0));
    for taker in takers {
        while !taker.is_finished() {
            node.until("children", |_| true).await;
        }
        taker.join().unwrap().unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    node.worker.stop();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Catches a mover or driver that loses, changes, repeats or reorders bytes when reads are short, neighbours pause or leave in the middle.
#[tokio::test]
async fn all_movers_deliver_the_same_bytes() {
    let combinations = [
        (Engine::Splice, DriverKind::Uring),
        (Engine::Splice, DriverKind::Epoll),
        (Engine::Copy, DriverKind::Uring),
        (Engine::Copy, DriverKind::Epoll),
        (Engine::Registered, DriverKind::Uring),
        (Engine::TokioUring, DriverKind::TokioUring),
        (Engine::Auto, DriverKind::Uring),
        (Engine::Auto, DriverKind::Epoll),
    ];
    let given = std::env::var("FAASNET_SEED").ok().map(|seed| seed.parse().expect("FAASNET_SEED is a number"));
    // Others each day, the same for all movers.
    let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 86_400;
    let seeds = given.map_or(vec![1, today], |seed| vec![seed]);
    let uring = probe().uring;
    for (engine, kind) in combinations {
        if let (Err(why), false) = (&uring, kind == DriverKind::Epoll) {
            eprintln!("SKIPPED {engine:?} on {kind:?}: {why}");
            continue;
        }
        for &seed in &seeds {
            let said = Said(format!("{engine:?} on {kind:?} with FAASNET_SEED={seed}"));
            run(engine, kind, seed).await;
            drop(said);
        }
    }
}

/// Says what was tried when a test fails in the middle of it.
struct Said(String);

impl Drop for Said {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("FAILED: {}", self.0);
        }
    }
}
