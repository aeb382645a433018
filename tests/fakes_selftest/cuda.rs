//! What the CUDA fake does when everything is right.

use super::driver::{Cuda, packed, ptx};
use super::run;

const WORDS: usize = 64;

#[test]
fn kernels_on_three_streams_with_events_compute() {
    for seed in ["1", "2", "3", "4"] {
        let watch = run("cuda::adds_over_three_streams", &["cuda"], &[("FAKE_GPU_SEED", seed)]);
        watch.assert_clean();
        assert_eq!(watch.calls("cuLaunchKernel"), 1);
        assert!(watch.ledger().contains("exit libcuda.so.1"), "{}", watch.ledger());
    }
}

#[test]
#[ignore = "a scenario"]
fn adds_over_three_streams() {
    let cuda = Cuda::start();
    let [copy_in, compute, copy_out] = [cuda.stream(), cuda.stream(), cuda.stream()];
    let (code, module) = cuda.load(&ptx(&[("add_i32_64", "ppp")]));
    assert_eq!(code, 0);
    let add = cuda.function(module, "add_i32_64");
    let [a, b, c] = [cuda.alloc(4 * WORDS), cuda.alloc(4 * WORDS), cuda.alloc(4 * WORDS)];
    let (up, down) = (cuda.pinned(2 * WORDS), cuda.pinned(WORDS));
    for (index, word) in up.iter_mut().enumerate() {
        *word = i32::try_from(index * index).expect("small");
    }
    assert_eq!(cuda.copy_in(b, &up[..WORDS], copy_in), 0);
    assert_eq!(cuda.copy_in(c, &up[WORDS..], copy_in), 0);
    cuda.join(compute, copy_in);
    assert_eq!(cuda.launch(add, (4, 16), &packed(&[a, b, c], &[]), compute), 0);
    cuda.join(copy_out, compute);
    assert_eq!(cuda.copy_out(down, a, copy_out), 0);
    assert_eq!(cuda.synchronize(copy_out), 0);
    for (index, &word) in down.iter().enumerate() {
        assert_eq!(word, up[index] + up[index + WORDS]);
    }
    for at in [a, b, c] {
        assert_eq!(cuda.free(at), 0);
    }
    assert_eq!(cuda.unpin(up), 0);
    assert_eq!(cuda.unpin(down), 0);
    cuda.unload(module);
    for stream in [copy_in, compute, copy_out] {
        cuda.drop_stream(stream);
    }
    cuda.end();
}
