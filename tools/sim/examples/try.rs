use faasnet_sim::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let n: usize = a[2].parse().unwrap();
    match a[1].as_str() {
        "chaos" => {
            let bug = a.get(3).map(|b| b.parse::<Bug>().unwrap());
            let from: u64 = a.get(4).map_or(0, |f| f.parse().unwrap());
            let (mut bad, t) = (0, std::time::Instant::now());
            for seed in from..from + n as u64 {
                let mut p = SimPlan::chaos(seed);
                p.bug = bug;
                match run(&p) { Ok(o) => if bug.is_none() && n < 10 { println!("{o:?}") }, Err(e) => { bad += 1; if bad < 4 {println!("{p:?}\n{e:#}");} } }
            }
            println!("{bad} of {n} failed, {:?}", t.elapsed());
        }
        policy => {
            let topo = match policy { "chain" => Topology::Chain, "registry" => Topology::Registry, "layers" => Topology::Layers(5), p => Topology::Trees(p.parse().unwrap()) };
            let mut p = SimPlan::new(n, a[3].parse::<u64>().unwrap() * 1_000_000, topo, 7);
            if let Some(d) = a.get(4) { p.faults.deaths = d.parse().unwrap(); }
            if let Some(d) = a.get(5) { p.seed = d.parse().unwrap(); }
            println!("{:#?}", run(&p));
        }
    }
}
