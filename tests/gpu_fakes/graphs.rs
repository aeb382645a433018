//! Graphs: what depends on what, what changes from run to run, and where the driver cannot.

use outboard::device::gpu::Vendor;
use outboard::device::{
    Device, Fence, Graph, GraphBuffer, GraphInt, GraphRun, GraphStep, Program, Region, Source, Span,
};

use crate::rig::*;

fn fixed(region: &Region) -> GraphBuffer<'_> {
    GraphBuffer::Fixed(whole(region))
}

fn run(device: &mut dyn Device, graph: &Graph, inputs: &[&Region], ints: &[i32]) -> Fence {
    let inputs: Vec<Span<'_>> = inputs.iter().map(|region| whole(region)).collect();
    device.run_graph(graph, &GraphRun { inputs: &inputs, ints, timed: false }).unwrap()
}

fn zeros(device: &mut dyn Device) -> Region {
    device.alloc(4 * THREADS as u64).unwrap()
}

/// A region whose elements are all `value`.
fn filled(device: &mut dyn Device, value: i32) -> Region {
    region(device, &bytes_of(&[value; THREADS]))
}

fn first(device: &mut dyn Device, region: &Region) -> i32 {
    let ints = ints(&read(device, region));
    assert!(ints.iter().all(|int| *int == ints[0]), "{ints:?}");
    ints[0]
}

/// `# graph exec=.. nodes=N edges=E critical_path=K` of each launch.
fn launched(trace: &str) -> Vec<[usize; 3]> {
    let graphs = trace.lines().filter(|line| line.starts_with("# graph "));
    let number = |line: &str, name: &str| {
        let at = line.find(name).unwrap() + name.len();
        line[at..].split(' ').next().unwrap().parse().unwrap()
    };
    let names = ["nodes=", "edges=", "critical_path="];
    graphs.map(|line| names.map(|name| number(line, name))).collect()
}

#[test]
fn independent_steps_run_side_by_side_and_dependent_ones_in_order() {
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let add = load(device, vendor, "add_i32", "ppp");
        let one = filled(device, 1);
        let sums: Vec<Region> = (0..8).map(|_| zeros(device)).collect();
        let total = zeros(device);
        // Eight sums of the same reads, which have nothing to do with each other; then a chain.
        let mut operands = Vec::new();
        for sum in &sums {
            operands.push([fixed(sum), fixed(&one), fixed(&one)]);
        }
        for sum in &sums {
            operands.push([fixed(&total), fixed(&total), fixed(sum)]);
        }
        let steps: Vec<GraphStep<'_>> =
            operands.iter().map(|operands| step(&add, operands, &[])).collect();
        let graph = device.build_graph(&steps).unwrap();
        run(device, &graph, &[], &[]);
        run(device, &graph, &[], &[]);
        assert_eq!(first(device, &total), 32);
    };
    let name = "graphs::independent_steps_run_side_by_side_and_dependent_ones_in_order";
    on_fakes(name, &[], body, |ran| {
        ran.watch.assert_clean();
        let graphs = launched(&ran.watch.trace());
        // The last eight are a chain behind the first sum.
        assert_eq!(graphs, [[16, 15, 9]; 2]);
        assert_eq!(ran.calls("cuGraphInstantiateWithFlags", "hipGraphInstantiateWithFlags"), 1);
        assert_eq!(changes(ran), 0);
    });
}

fn changes(ran: &Ran) -> usize {
    ran.calls("cuGraphExecKernelNodeSetParams_v2", "hipGraphExecKernelNodeSetParams")
        + ran.calls("cuGraphExecMemcpyNodeSetParams", "hipGraphExecMemcpyNodeSetParams1D")
}

fn made(ran: &Ran) -> usize {
    ran.calls("cuGraphInstantiateWithFlags", "hipGraphInstantiateWithFlags")
}

#[test]
fn run_changes_only_what_differs() {
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let add = load(device, vendor, "add_i32", "ppp");
        let increment = load(device, vendor, "increment_i32", "pi");
        let (sum, copy) = (zeros(device), zeros(device));
        let (ones, twos) = (filled(device, 1), filled(device, 2));
        let summed = [fixed(&sum), fixed(&sum), GraphBuffer::Input(0)];
        let incremented = [fixed(&sum)];
        let (values, always) = ([GraphInt::Variable(1)], [GraphInt::Fixed(100)]);
        let (to, from) = (GraphBuffer::Input(1), fixed(&sum));
        let steps = [
            step(&add, &summed, &[]),
            step(&increment, &incremented, &values),
            step(&increment, &incremented, &always),
            GraphStep::Copy { to, from, bytes: 4 * THREADS as u64 },
        ];
        let graph = device.build_graph(&steps).unwrap();
        // Nothing changes, then an input, then a value; each run is over before the next.
        for (input, value, expected) in
            [(&ones, 10, 111), (&ones, 10, 222), (&twos, 10, 334), (&twos, 20, 456)]
        {
            let fence = run(device, &graph, &[input, &copy], &[0, value]);
            wait(device, fence);
            assert_eq!(first(device, &copy), expected);
        }
    };
    on_fakes("graphs::run_changes_only_what_differs", &[], body, |ran| {
        ran.watch.assert_clean();
        assert_eq!((made(ran), changes(ran)), (1, 2));
    });
}

#[test]
fn runs_that_overlap_get_what_each_was_given() {
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let spin = load(device, vendor, "spin_us_", "pi");
        let increment = load(device, vendor, "increment_i32", "pi");
        let (busy, count) = (zeros(device), zeros(device));
        let (busied, counted) = ([fixed(&busy)], [fixed(&count)]);
        let (long, values) = ([GraphInt::Fixed(20_000)], [GraphInt::Variable(0)]);
        let steps = [step(&spin, &busied, &long), step(&increment, &counted, &values)];
        let graph = device.build_graph(&steps).unwrap();
        for value in [1, 10, 100, 1000, 10_000] {
            run(device, &graph, &[], &[value]);
        }
        assert_eq!(first(device, &count), 11_111);
    };
    on_fakes("graphs::runs_that_overlap_get_what_each_was_given", &[], body, |ran| {
        ran.watch.assert_clean();
        let launches = launched(&ran.watch.trace()).len();
        match ran.vendor {
            Vendor::Nvidia => assert_eq!((made(ran), launches), (1, 5)),
            // What is under way is not changed there: two take turns, then steps go one by one.
            Vendor::Amd => assert!(made(ran) == 2 && launches >= 2, "{launches}"),
        }
    });
}

#[test]
fn inputs_that_share_memory_are_ordered() {
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let add = load(device, vendor, "add_i32", "ppp");
        let own = filled(device, 5);
        let (a, b, c) = (filled(device, 1), filled(device, 2), filled(device, 3));
        let one = [GraphBuffer::Input(0), fixed(&own), fixed(&own)];
        let two = [GraphBuffer::Input(1), GraphBuffer::Input(2), fixed(&own)];
        let steps = [step(&add, &one, &[]), step(&add, &two, &[])];
        let graph = device.build_graph(&steps).unwrap();
        // Apart: a = 10, b = 3 + 5. Then the second reads what the first writes: c = 10, a = 15.
        run(device, &graph, &[&a, &b, &c], &[]);
        assert_eq!((first(device, &a), first(device, &b)), (10, 8));
        run(device, &graph, &[&c, &a, &c], &[]);
        assert_eq!((first(device, &c), first(device, &a)), (10, 15));
        // An input that is the graph's own buffer: own = 10, then b = 10 + 10.
        run(device, &graph, &[&own, &b, &own], &[]);
        assert_eq!((first(device, &own), first(device, &b)), (10, 20));
        // Apart again, and the sharing of before.
        run(device, &graph, &[&a, &b, &c], &[]);
        run(device, &graph, &[&c, &a, &c], &[]);
        assert_eq!((first(device, &b), first(device, &a)), (20, 30));
    };
    on_fakes("graphs::inputs_that_share_memory_are_ordered", &[], body, |ran| {
        ran.watch.assert_clean();
        let paths: Vec<usize> = launched(&ran.watch.trace()).iter().map(|graph| graph[2]).collect();
        assert_eq!(paths, [1, 2, 2, 1, 2]);
    });
}

#[test]
fn copy_onto_itself_in_a_graph_moves_all_bytes() {
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let sent = pattern(1000);
        for (to, from) in [(0, 100), (100, 0), (500, 0)] {
            let region = region(device, &sent);
            let part = |at: usize| {
                let span = Span::new(&region, at.try_into().unwrap(), 500);
                GraphBuffer::Fixed(span.unwrap())
            };
            let copy = GraphStep::Copy { to: part(to), from: part(from), bytes: 500 };
            let graph = device.build_graph(&[copy]).unwrap();
            run(device, &graph, &[], &[]);
            let mut expected = sent.clone();
            expected.copy_within(from..from + 500, to);
            assert!(read(device, &region) == expected, "{to} {from}");
        }
    };
    clean_on_fakes("graphs::copy_onto_itself_in_a_graph_moves_all_bytes", &[], body);
}

/// What each kind of graph came to, so that a driver that cannot make graphs can be compared.
fn many_steps(device: &mut dyn Device, increment: &Program, count: &Region) -> Graph {
    let buffers = [fixed(count)];
    let values = [GraphInt::Variable(0)];
    device.build_graph(&vec![step(increment, &buffers, &values); 1000]).unwrap()
}

#[test]
fn graph_of_many_kernels_is_one_launch_and_timed() {
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let increment = load(device, vendor, "increment_i32", "pi");
        let count = zeros(device);
        let graph = many_steps(device, &increment, &count);
        let timed = GraphRun { inputs: &[], ints: &[3], timed: true };
        let fence = device.run_graph(&graph, &timed).unwrap();
        wait(device, fence);
        assert!(!device.elapsed(fence).unwrap().is_zero());
        assert_eq!(first(device, &count), 3000);
        // Its memory and its program are its own.
        drop((increment, count));
        run(device, &graph, &[], &[4]);
        drop(graph);
        wait_for_all(device);
    };
    on_fakes("graphs::graph_of_many_kernels_is_one_launch_and_timed", &[], body, |ran| {
        ran.watch.assert_clean();
        assert_eq!(launched(&ran.watch.trace()), [[1000, 999, 1000]; 2]);
        assert_eq!(ran.calls("cuLaunchKernel", "hipModuleLaunchKernel"), 0);
        assert_eq!(changes(ran), 1000);
    });
}

#[test]
fn graph_that_the_driver_cannot_make_runs_step_by_step() {
    let fail = "cuGraphAddKernelNode_v2:801:every,hipGraphAddKernelNode:801:every";
    let environment = &[("FAKE_GPU_FAIL", fail)];
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let increment = load(device, vendor, "increment_i32", "pi");
        let count = zeros(device);
        let graph = many_steps(device, &increment, &count);
        run(device, &graph, &[], &[1]);
        run(device, &graph, &[], &[2]);
        assert_eq!(first(device, &count), 3000);
    };
    let name = "graphs::graph_that_the_driver_cannot_make_runs_step_by_step";
    on_fakes(name, environment, body, |ran| {
        ran.watch.assert_clean();
        assert_eq!(ran.calls("cuLaunchKernel", "hipModuleLaunchKernel"), 2000);
    });
}

#[test]
fn run_with_what_the_device_cannot_do_is_refused_and_the_graph_stays() {
    let body = |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let increment = load(device, vendor, "increment_i32", "p");
        let count = zeros(device);
        let buffers = [GraphBuffer::Input(0)];
        let global = Some([GraphInt::Variable(0), GraphInt::Fixed(1), GraphInt::Fixed(1)]);
        let local = BLOCK.map(|sizes| sizes.map(GraphInt::Fixed));
        let (program, outputs, values) = (&increment, &[0][..], &[][..]);
        let step = GraphStep::Launch { program, buffers: &buffers, outputs, values, global, local };
        let graph = device.build_graph(&[step]).unwrap();
        run(device, &graph, &[&count], &[4]);
        let inputs = [whole(&count)];
        for (inputs, ints, why) in [
            (&inputs[..], &[0][..], "global size 0 in dimension 0"),
            (&inputs[..], &[][..], "a value is missing"),
            (&[][..], &[1][..], "an input is missing"),
        ] {
            let run = GraphRun { inputs, ints, timed: false };
            let error = device.run_graph(&graph, &run).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        run(device, &graph, &[&count], &[4]);
        assert_eq!(first(device, &count), 2);
    };
    let name = "graphs::run_with_what_the_device_cannot_do_is_refused_and_the_graph_stays";
    clean_on_fakes(name, &[], body);
}

#[test]
fn graph_waits_for_copies_and_copies_for_the_graph() {
    clean_on_fakes("graphs::graph_waits_for_copies_and_copies_for_the_graph", &[], |vendor| {
        let mut rig = Rig::new(vendor);
        let mut device = rig.open();
        let device = &mut *device;
        let add = load(device, vendor, "add_i32", "ppp");
        let count = 50_000;
        let (to, from) = (device.alloc(200_000).unwrap(), device.alloc(200_000).unwrap());
        let operands = [fixed(&to), GraphBuffer::Input(0), GraphBuffer::Input(0)];
        let graph = device.build_graph(&[step(&add, &operands, &[])]).unwrap();
        for value in [3, 5, 8] {
            let bytes = bytes_of(&vec![value; count]);
            device.copy_in(whole(&from), Source::Bytes(&bytes)).unwrap();
            run(device, &graph, &[&from], &[]);
            let (fence, piece) = device.read(whole(&to)).unwrap();
            wait(device, fence);
            assert_eq!(ints(piece.slice())[..THREADS], [2 * value; THREADS]);
        }
    });
}
