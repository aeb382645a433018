//! Graphs of the CUDA fake: nodes run in any order that their dependencies allow.

use std::ffi::c_uint;
use std::ptr;

use super::driver::{Cuda, Handle, call, ok, packed};
use super::scenario;

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
struct KernelNode {
    function: Handle,
    sizes: [c_uint; 7],
    parameters: *mut Handle,
    extra: *mut Handle,
    rest: [Handle; 2],
}

/// Hands a kernel's description to a call.
fn described<T>(
    function: Handle,
    threads: u32,
    arguments: &[u8],
    call: impl FnOnce(*const KernelNode) -> T,
) -> T {
    let mut bytes = arguments.len();
    let mut extra: [Handle; 5] = [
        ptr::without_provenance_mut(1),
        arguments.as_ptr().cast_mut().cast(),
        ptr::without_provenance_mut(2),
        (&raw mut bytes).cast(),
        ptr::null_mut(),
    ];
    let node = KernelNode {
        function,
        sizes: [1, 1, 1, threads, 1, 1, 0],
        parameters: ptr::null_mut(),
        extra: extra.as_mut_ptr(),
        rest: [ptr::null_mut(); 2],
    };
    call(&raw const node)
}

pub(crate) struct Graph<'a> {
    cuda: &'a Cuda,
    pub(crate) template: Handle,
}

impl Graph<'_> {
    pub(crate) fn new(cuda: &Cuda) -> Graph<'_> {
        let mut template = ptr::null_mut();
        ok(call!(cuda.library, cuGraphCreate(&raw mut template => *mut Handle, 0 => c_uint)));
        Graph { cuda, template }
    }

    /// Adds a kernel of four threads.
    pub(crate) fn kernel(
        &self,
        after: &[Handle],
        function: Handle,
        arguments: &[u8],
    ) -> Result<Handle, i32> {
        let mut node = ptr::null_mut();
        let code = described(function, 4, arguments, |description| {
            call!(self.cuda.library, cuGraphAddKernelNode_v2(
                &raw mut node => *mut Handle, self.template => Handle,
                after.as_ptr() => *const Handle, after.len() => usize,
                description => *const KernelNode))
        });
        if code == 0 { Ok(node) } else { Err(code) }
    }

    /// Adds a copy of four words.
    pub(crate) fn copy(&self, after: &[Handle], to: u64, from: u64) -> Handle {
        let mut words = [0_u64; 25];
        (words[4], words[6], words[15], words[17]) = (2, from, 2, to);
        (words[22], words[23], words[24]) = (16, 1, 1);
        let mut node = ptr::null_mut();
        ok(call!(self.cuda.library, cuGraphAddMemcpyNode(
            &raw mut node => *mut Handle, self.template => Handle,
            after.as_ptr() => *const Handle, after.len() => usize,
            words.as_ptr() => *const u64, self.cuda.context => Handle)));
        node
    }

    pub(crate) fn instantiate(&self) -> Handle {
        let mut exec = ptr::null_mut();
        ok(call!(self.cuda.library, cuGraphInstantiateWithFlags(
            &raw mut exec => *mut Handle, self.template => Handle, 0 => u64)));
        exec
    }

    pub(crate) fn set_kernel(&self, exec: Handle, node: Handle, f: Handle, args: &[u8]) -> i32 {
        described(f, 4, args, |description| {
            call!(self.cuda.library, cuGraphExecKernelNodeSetParams_v2(
                exec => Handle, node => Handle, description => *const KernelNode))
        })
    }

    pub(crate) fn launch(&self, exec: Handle, stream: Handle) -> i32 {
        call!(self.cuda.library, cuGraphLaunch(exec => Handle, stream => Handle))
    }

    fn drop_exec(&self, exec: Handle) {
        ok(call!(self.cuda.library, cuGraphExecDestroy(exec => Handle)));
    }

    fn end(self) {
        ok(call!(self.cuda.library, cuGraphDestroy(self.template => Handle)));
    }
}

/// Four fills side by side, their sum, and a copy of it, launched twice with other values.
fn sum_of_four() {
    let cuda = Cuda::start();
    let stream = cuda.stream();
    let (fills, fill) = cuda.kernel("fill_4", "pi");
    let (sums, gather) = cuda.kernel("gather_4", "ppppp");
    let parts = [(); 4].map(|()| cuda.alloc(16));
    let (sum, copy, down) = (cuda.alloc(16), cuda.alloc(16), cuda.pinned(4));
    let graph = Graph::new(&cuda);
    let nodes = parts.map(|at| graph.kernel(&[], fill, &packed(&[at], &[1])).expect("a node"));
    let [a, b, c, d] = parts;
    let added = graph.kernel(&nodes, gather, &packed(&[sum, a, b, c, d], &[])).expect("a node");
    graph.copy(&[added], copy, sum);
    let exec = graph.instantiate();
    for value in [1, 10] {
        for (node, at) in nodes.into_iter().zip(parts) {
            ok(graph.set_kernel(exec, node, fill, &packed(&[at], &[value])));
        }
        ok(graph.launch(exec, stream));
        ok(cuda.copy_out(down, copy, stream));
        ok(cuda.synchronize(stream));
        assert_eq!(down, [4 * value; 4]);
    }
    graph.drop_exec(exec);
    graph.end();
    for at in parts.into_iter().chain([sum, copy]) {
        ok(cuda.free(at));
    }
    ok(cuda.unpin(down));
    cuda.unload(fills);
    cuda.unload(sums);
    cuda.drop_stream(stream);
    cuda.end();
}

#[test]
fn graph_with_all_dependencies_computes_whatever_the_seed() {
    for seed in ["1", "2", "3"] {
        let Some(watch) = scenario(&["cuda"], &[("FAKE_GPU_SEED", seed)], || {
            sum_of_four();
        }) else {
            return;
        };
        watch.assert_clean();
        let line = "nodes=6 edges=5 critical_path=3";
        assert_eq!(watch.trace().matches(line).count(), 2, "{}", watch.trace());
    }
}

#[test]
fn graph_without_a_dependency_is_a_race() {
    let Some(watch) = scenario(&["cuda"], &[], || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let (_, fill) = cuda.kernel("fill_4", "pi");
        let (at, to) = (cuda.alloc(16), cuda.alloc(16));
        let graph = Graph::new(&cuda);
        graph.kernel(&[], fill, &packed(&[at], &[1])).expect("a node");
        graph.copy(&[], to, at);
        ok(graph.launch(graph.instantiate(), stream));
        ok(cuda.synchronize(stream));
    }) else {
        return;
    };
    assert!(watch.report().contains("race: libcuda.so.1 cuGraphLaunch: nodes 0 and 1"));
}

#[test]
fn independent_nodes_that_take_time_run_side_by_side() {
    let Some(watch) = scenario(&["cuda"], &[], || {
        let cuda = Cuda::start();
        let stream = cuda.stream();
        let (_, spin) = cuda.kernel("spin_us_1", "i");
        let graph = Graph::new(&cuda);
        for _ in 0..40 {
            graph.kernel(&[], spin, &packed(&[], &[50_000])).expect("a node");
        }
        let exec = graph.instantiate();
        let start = std::time::Instant::now();
        ok(graph.launch(exec, stream));
        ok(cuda.synchronize(stream));
        // One after the other they take two seconds.
        let took = start.elapsed();
        assert!((0.05..1.5).contains(&took.as_secs_f64()), "{took:?}");
    }) else {
        return;
    };
    assert!(watch.trace().contains("nodes=40 edges=0 critical_path=1"));
}

#[test]
fn nodes_of_another_graph_are_refused() {
    let Some(watch) = scenario(&["cuda"], &[], || {
        let cuda = Cuda::start();
        let (_, fill) = cuda.kernel("fill_4", "pi");
        let at = cuda.alloc(16);
        let arguments = packed(&[at], &[1]);
        let [one, two] = [Graph::new(&cuda), Graph::new(&cuda)];
        let node = one.kernel(&[], fill, &arguments).expect("a node");
        assert_eq!(two.kernel(&[node], fill, &arguments), Err(1));
        let exec = two.instantiate();
        assert_eq!(one.set_kernel(exec, node, fill, &arguments), 1);
    }) else {
        return;
    };
    let report = watch.report();
    assert!(report.contains("cuGraphAddKernelNode_v2: node") && report.contains("another graph"));
    assert!(report.contains("cuGraphExecKernelNodeSetParams_v2: node"), "{report}");
}
