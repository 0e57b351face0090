// status: tells the host that an index in the data is out of range.
//
// Word 0 says that it happened; the invocation that set it first says where: the number of the kernel, the
// position of the index, the index and the size of the axis.
//
// param kernel: u32

fn report(position: u32, index: u32, size: u32) {
    if atomicMax(&status[0], 1u) == 0u {
        atomicStore(&status[1], p.kernel);
        atomicStore(&status[2], position);
        atomicStore(&status[3], index);
        atomicStore(&status[4], size);
    }
}
