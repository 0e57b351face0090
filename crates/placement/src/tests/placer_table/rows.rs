//! The rows. Tests run with soft placement unless TensorFlow's say otherwise.

use super::{Row, hard, soft};
use convoke_graph_core::ErrorKind::{FailedPrecondition, Internal};

/// What is said of a variable and an assignment whose kernels don't meet.
const NO_COMMON: &[&str] = &["must be on the device of 'var'", "no device has a kernel for all"];

pub(super) const ROWS: &[Row] = &[
    // Kernels, and priorities as costs.
    soft("TestNoConstraints", "in:cpu n1:any n2:any in->n1 in->n2").on("in=CPU n1=GPU n2=GPU"),
    soft(
        "TestNoConstraintsWithPrioritizedKernels",
        "in:cpu n1:cpu-first n2:cpu-first in->n1 in->n2",
    )
    .on("in=CPU n1=CPU n2=CPU"),
    soft("TestXlaOpPlacement", "in:cpu n1:xla n2:xla#XLA_CPU:0 in->n1 in->n2")
        .among("CPU:0 GPU:0 XLA_CPU:0")
        .on("in=CPU n1=CPU n2=XLA_CPU"),
    soft("TestGPUInputIntoPrioritizedKernel", "in:gpu n1:cpu-first in->n1").on("in=GPU n1=CPU"),
    soft(
        "TestGPUInputColocatedWithPrioritizedKernel",
        "in:gpu n1:cpu-first n2:cpu-first in->n1 in->n2 n1~in",
    )
    .on("in=GPU n1=GPU n2=CPU"),
    soft("TestDSWithPriority", "ds:cpu-first it:any ds=>it").on("ds=CPU it=CPU"),
    soft("TestDSWithGPUPriority", "ds:gpu-first it:any ds=>it").on("ds=GPU it=GPU"),
    soft("TestITWithPriority", "ds:any it:cpu-first ds=>it").on("ds=CPU it=CPU"),
    soft("TestITWithGPUPriority", "ds:any it:gpu-first ds=>it").on("ds=GPU it=GPU"),
    soft("TestITGPU", "ds:cpu-first it:gpu ds=>it").on("ds=GPU it=GPU"),
    soft("TestSimpleIteratorOnlyGPU", "ds:cpu it:gpu-first ds=>it").on("ds=CPU it=CPU"),
    soft("TestAgreeingPriorities", "ds:cpu-first it:cpu-first ds=>it").on("ds=CPU it=CPU"),
    soft("TestAgreeingRegularPriorities", "ds:gpu-first it:gpu-first ds=>it").on("ds=GPU it=GPU"),
    soft("TestConflictingPriorities", "ds:cpu-first it:gpu-first ds=>it").on("ds=GPU it=GPU"),
    soft("TestConflictingPrioritiesReversed", "ds:gpu-first it:cpu-first ds=>it")
        .on("ds=GPU it=GPU"),
    soft(
        "TestDeviceTypeConstraints",
        "in:cpu var_cpu:var-cpu assign_cpu:cpu var_cpu=>assign_cpu in->assign_cpu \
         var_gpu:var-gpu assign_gpu:gpu var_gpu=>assign_gpu in->assign_gpu",
    )
    .on("in=CPU var_cpu=CPU assign_cpu==var_cpu var_gpu=GPU assign_gpu==var_gpu"),
    // What TensorFlow's heuristics give, by cost.
    soft("TestMetadataColocatedWithInput", "var_cpu:var-cpu shape_op:tiny var_cpu->shape_op")
        .on("var_cpu=CPU shape_op==var_cpu"),
    soft(
        "TestHeuristicGeneratorFollowsSingleConsumer",
        "var_cpu:var-cpu in:tiny assign:any var_cpu=>assign in->assign",
    )
    .on("var_cpu=CPU in==var_cpu assign==in"),
    soft(
        "TestIgnoreGeneratorHeuristicIfWrongDevice",
        "var_cpu:var-cpu in:gpu assign:any var_cpu=>assign in->assign",
    )
    .on("in=GPU var_cpu=CPU assign==var_cpu"),
    soft(
        "TestIgnoreGeneratorHeuristicIfWrongPartialDevice",
        "var_cpu:var-cpu in:tiny@CPU:1 assign:any var_cpu=>assign in->assign",
    )
    .on("in=CPU:1 var_cpu=CPU:1 assign==var_cpu")
    .differs("all CPUs are equal here, and beside 'in' nothing crosses; TensorFlow takes CPU:0"),
    soft(
        "TestGeneratorNodeFollowsConsumerNode",
        "var1_cpu:var-cpu var2_cpu:var-cpu in:tiny assign1:any assign2:any \
         var1_cpu=>assign1 in->assign1 var2_cpu=>assign2 in->assign2",
    )
    .on("in=CPU var1_cpu==in assign1==in var2_cpu==in assign2==in"),
    soft(
        "TestGeneratorNodeDoesntFollowNonColocatedConsumers",
        "var1_cpu:var-cpu#CPU:1 var2_cpu:var-cpu#CPU:2 in:tiny assign1:any assign2:any \
         var1_cpu=>assign1 in->assign1 var2_cpu=>assign2 in->assign2",
    )
    .on("assign1==var1_cpu assign2==var2_cpu var1_cpu=CPU:1 var2_cpu=CPU:2 in=CPU")
    .differs("beside one of its consumers it crosses once; TensorFlow takes a GPU, and it crosses twice"),
    // Requests and assignments of single items.
    soft("TestPartialSpec", "in:cpu@/job:a var:var@/job:a")
        .on("in=CPU in=/job:a var=CPU var=/job:a")
        .differs("a variable that nobody uses costs the same everywhere; TensorFlow takes a GPU"),
    soft("TestPartialSpec", "in:cpu@/job:a var:var@/job:a use:any var->use")
        .on("in=CPU var=GPU var=/job:a use==var"),
    soft("TestAssignedDevicePreserved", "in:cpu#CPU:7").on("in=CPU:7"),
    soft("TestPartialSpecGpuToCpu", "in:cpu@GPU:0 var:var@GPU:0").on("in=CPU var=GPU:0"),
    soft("TestNonexistentGpuAllowSoftPlacement", "in:gpu@GPU:11").on("in=GPU:0"),
    soft("TestUnsupportedDeviceAllowSoftPlacement", "a:cpu@GPU:0").on("a=CPU"),
    soft("TestResourceMove", "ds:var@CPU:0 it:gpu ds=>it").on("ds=GPU it=GPU"),
    hard("TestResourceMove", "ds:var@CPU:0 it:gpu ds=>it")
        .invalid(&["/device:CPU:0 was requested", "can't run 'it': no kernel for CPU"]),
    // A resource and its user: TestResourceHandle has the same matrix.
    soft("TestReferenceConnection", "in:cpu var:var assign:any var=>assign in->assign")
        .on("var=GPU assign==var"),
    soft("TestReferenceConnection", "in:cpu var:var assign:cpu var=>assign in->assign")
        .on("var=CPU assign==var"),
    soft("TestReferenceConnection", "in:cpu var:var assign:gpu var=>assign in->assign")
        .on("var=GPU assign==var"),
    soft("TestReferenceConnection", "in:cpu var:var-cpu assign:any var=>assign in->assign")
        .on("var=CPU assign==var"),
    soft("TestReferenceConnection", "in:cpu var:var-cpu assign:cpu var=>assign in->assign")
        .on("var=CPU assign==var"),
    soft("TestReferenceConnection", "in:cpu var:var-cpu assign:gpu var=>assign in->assign")
        .invalid(NO_COMMON),
    soft("TestReferenceConnection", "in:cpu var:var-gpu assign:any var=>assign in->assign")
        .on("var=GPU assign==var"),
    soft("TestReferenceConnection", "in:cpu var:var-gpu assign:cpu var=>assign in->assign")
        .invalid(NO_COMMON),
    soft("TestReferenceConnection", "in:cpu var:var-gpu assign:gpu var=>assign in->assign")
        .on("var=GPU assign==var"),
    soft(
        "TestResourceHandlesOnDifferentDevicesFails",
        "var_cpu:var@CPU:0 var_gpu:var@GPU:0 two:any var_cpu=>two var_gpu=>two",
    )
    .invalid(&["two: must be on the device of 'var_gpu'", "variables ask for /device:GPU:0"]),
    hard(
        "TestResourceHandlesOnDifferentDevicesFails",
        "var_cpu:var@CPU:0 var_gpu:var@GPU:0 two:any var_cpu=>two var_gpu=>two",
    )
    .invalid(&["two: must be on the device of 'var_gpu'", "variables ask for /device:GPU:0"]),
    soft(
        "TestResourceHandlesOnDifferentDevicesFails",
        "var_cpu:var#CPU:0 var_gpu:var#GPU:0 two:any var_cpu=>two var_gpu=>two",
    )
    .invalid(&["'var_gpu'", "they are assigned to /job:a/replica:0/task:0/device:GPU:0 and"]),
    hard(
        "TestResourceHandlesOnDifferentDevicesFails",
        "var_cpu:var#CPU:0 var_gpu:var#GPU:0 two:any var_cpu=>two var_gpu=>two",
    )
    .invalid(&["'var_gpu'", "they are assigned to /job:a/replica:0/task:0/device:GPU:0 and"]),
    hard(
        "TestReferenceConnectionIgnoreInfeasible",
        "in:gpu@/job:a/task:0/device:GPU:0 var_0:var@/job:a/task:0/device:GPU:0 \
         assign:any@/job:a/task:0/device:CPU:0 var_0=>assign in->assign",
    )
    .on("var_0=GPU:0 assign=GPU:0"),
    hard(
        "TestReferenceConnectionMoreSpecificDestinationSourceWins",
        "in:tiny@/job:a/task:0 var_0:var@/job:a/task:0 assign:any@/job:a/task:0/device:CPU:0 \
         var_0=>assign in->assign",
    )
    .on("var_0=CPU:0 assign=CPU:0"),
    hard(
        "TestReferenceConnectionNoSourceDevice",
        "in:gpu@/job:a/task:0/device:GPU:0 var_0:var assign:any@/job:a/task:0/device:CPU:0 \
         var_0=>assign in->assign",
    )
    .on("var_0=CPU:0 assign=CPU:0"),
    soft(
        "TestDeviceTypeConstraintsAllowSoftPlacement",
        "var_gpu:var-gpu force_gpu:any@CPU:0 var_gpu=>force_gpu \
         var_cpu:var-cpu force_cpu:any@GPU:0 var_cpu=>force_cpu",
    )
    .on("var_gpu=GPU force_gpu==var_gpu var_cpu=CPU force_cpu==var_cpu"),
    soft(
        "TestUnsatisfiableConstraintWithReferenceConnections",
        "var:var-gpu in:cpu assign:cpu var=>assign in->assign",
    )
    .invalid(&["assign: must be on the device of 'var'", "CPU:0", "can't run 'var'"]),
    // Colocation.
    soft("TestColocationGroup", "in:cpu colocated_1:any foo:any in->colocated_1 in->foo colocated_1~in")
        .on("in=CPU colocated_1==in foo=GPU"),
    soft(
        "TestMultipleColocationGroups",
        "in:cpu colocated_1:any foo:any in->colocated_1 in->foo colocated_1~in foo~in foo~colocated_1",
    )
    .on("in=CPU colocated_1==in foo==in"),
    soft(
        "TestInvalidMultipleColocationGroups",
        "in:cpu colocated_1:cpu foo:gpu in->colocated_1 in->foo colocated_1~in foo~in foo~colocated_1",
    )
    .on("in=CPU colocated_1=CPU foo=GPU"),
    hard(
        "TestInvalidMultipleColocationGroups",
        "in:cpu colocated_1:cpu foo:gpu in->colocated_1 in->foo colocated_1~in foo~in foo~colocated_1",
    )
    .invalid(&["foo: can't be colocated with 'in'", "no device has a kernel for all"]),
    soft(
        "TestColocationGroupWithReferenceConnections",
        "in:cpu var1:var-cpu var2:var-cpu assign1:any assign2:any var1=>assign1 in->assign1 \
         var2=>assign2 in->assign2 assign1~var1 assign2~var2",
    )
    .on("in=CPU var1==in var2==in assign2==var1 assign1==var2"),
    soft(
        "TestColocationGroupWithUnsatisfiableReferenceConnections",
        "in:cpu var1:var-cpu var2:var-cpu var3:var-gpu assign1:any assign2:any assign3:any \
         var1=>assign1 in->assign1 var2=>assign2 in->assign2 var3=>assign3 in->assign3 \
         assign1~var1 assign2~var2 assign3~var2",
    )
    .on("assign1==var1 assign2==var2 var2=CPU assign3==var3 var3=GPU"),
    hard(
        "TestColocationGroupWithUnsatisfiableReferenceConnections",
        "in:cpu var1:var-cpu var2:var-cpu var3:var-gpu assign1:any assign2:any assign3:any \
         var1=>assign1 in->assign1 var2=>assign2 in->assign2 var3=>assign3 in->assign3 \
         assign1~var1 assign2~var2 assign3~var2",
    )
    .invalid(&["assign3: can't be colocated with 'var2'", "no device has a kernel for all"]),
    soft(
        "RequestedDeviceOnResourceGeneratorIsTreatedAsAssigned",
        "a:var@GPU:0 b:var@CPU:0 id1:any id2:any a=>id1 b=>id2 id1~id2",
    )
    .on("a=GPU id1=GPU b=CPU id2=CPU"),
    hard(
        "RequestedDeviceOnResourceGeneratorIsTreatedAsAssigned",
        "a:var@GPU:0 b:var@CPU:0 id1:any id2:any a=>id1 b=>id2 id1~id2",
    )
    .invalid(&["id1: can't be colocated with 'id2'", "/device:GPU:0 and /device:CPU:0"]),
    soft(
        "RequestedDeviceCanBeOverridden",
        "a:var b:var id_a:any@GPU:0 id_b:any@CPU:0 id1:any id2:any a=>id_a b=>id_b \
         id_a=>id1 id_b=>id2 id1~id2",
    )
    .on("a==b id_a==id_b id1==id2 a==id_a a==id1"),
    hard(
        "RequestedDeviceCanBeOverridden",
        "a:var b:var id_a:any@GPU:0 id_b:any@CPU:0 id1:any id2:any a=>id_a b=>id_b \
         id_a=>id1 id_b=>id2 id1~id2",
    )
    .invalid(&["id1: can't be colocated with 'id2'", "/device:GPU:0 and /device:CPU:0"]),
    soft("AssignedDeviceOfColocatedNodeIsRespected", "a:var#CPU:0 iter:gpu a=>iter")
        .invalid(&["iter: has to share CPU:0 with 'a'", "can't run 'iter': no kernel for CPU"]),
    soft(
        "AssignedDevicesAreNotOverriddenDueToResourcesAndColocation",
        "a:var b:var id_a:any#GPU:0 id_b:any#CPU:0 id1:any id2:any a=>id_a b=>id_b \
         id_a=>id1 id_b=>id2 id1~id2",
    )
    .on("a=GPU id_a=GPU id1=GPU b=CPU id_b=CPU id2=CPU"),
    hard(
        "AssignedDevicesAreNotOverriddenDueToResourcesAndColocation",
        "a:var b:var id_a:any#GPU:0 id_b:any#CPU:0 id1:any id2:any a=>id_a b=>id_b \
         id_a=>id1 id_b=>id2 id1~id2",
    )
    .invalid(&["id1: can't be colocated with 'id2'", "they are assigned to", "task:0/device:CPU:0"]),
    // Devices and kernels that are not there.
    soft("TestEmptyDeviceSet", "in:cpu")
        .among("none")
        .fails(FailedPrecondition, &["no devices are registered"]),
    soft(
        "TestHeterogeneousDeviceSetFailure",
        "in:cpu var:var-gpu assign:any@/job:b/task:1 var=>assign in->assign",
    )
    .among("/job:b/replica:0/task:1/device:CPU:0 /job:b/replica:0/task:0/device:GPU:0")
    .invalid(&[
        "assign: /job:b/task:1 was requested, and it has no kernel for all that is colocated here",
        "/job:b/replica:0/task:1/device:CPU:0 can't run 'var': no kernel for CPU",
        "with a kernel: /job:b/replica:0/task:0/device:GPU:0",
    ]),
    soft("TestUnknownDevice", "in:cpu@/job:foo")
        .invalid(&["/job:foo was requested, and there is no such device"]),
    soft("TestUnknownMergedDevice", "in:cpu@/job:foo")
        .invalid(&["/job:foo was requested, and there is no such device"]),
    soft("TestUnknownAssignedDevice", "in:cpu#/job:foo")
        .fails(Internal, &["in: assigned to device 20, and there are 20"]),
    soft("TestAssignedGpuDeviceToCpuDevice", "in:cpu#GPU:0")
        .fails(Internal, &["in: assigned to GPU:0, which has no kernel for this operation"]),
    soft("TestNoKernelsRegisteredWithNoRequstedDevice", "var:none")
        .invalid(&["var: no device has a kernel for this operation", "with a kernel: none"]),
    hard(
        "TestNoKernelsRegisteredWithRequestedDeviceLocal",
        "var:none@/job:b/replica:0/task:0/device:GPU:0",
    )
    .among("/job:b/replica:0/task:0/device:CPU:0 /job:b/replica:0/task:0/device:GPU:0")
    .invalid(&["var: no device has a kernel for this operation", "with a kernel: none"]),
    hard(
        "TestNoKernelsRegisteredWithRequestedDeviceRemote",
        "var:gpu@/job:b/replica:0/task:1/device:GPU:0",
    )
    .among("/job:b/replica:0/task:0/device:CPU:0 /job:b/replica:0/task:1/device:GPU:0")
    .on("var=/job:b/replica:0/task:1/device:GPU:0"),
    soft("TestNoDevicesRegistered", "var:var-gpu")
        .among("CPU:0")
        .invalid(&["var: no device has a kernel for this operation", "CPU:0 can't run 'var': no kernel"]),
    soft("TestMalformedDeviceSpecification", "in:cpu@/foo:bar")
        .invalid(&["malformed device specification '/foo:bar'"]),
    hard("TestNonexistentGpuNoAllowSoftPlacement", "in:gpu@GPU:11")
        .invalid(&["/device:GPU:11 was requested, and there is no such device"]),
    hard("TestNonexistentGpuNoAllowSoftPlacementFormatTag", "in:gpu@GPU:11")
        .invalid(&["in: /device:GPU:11 was requested", "'in' asks for /device:GPU:11"]),
    hard("TestUnsupportedDeviceNoAllowSoftPlacement", "var:var-gpu@CPU:0").invalid(&[
        "/device:CPU:0 was requested, and it has no kernel for this operation",
        "can't run 'var': no kernel for CPU",
    ]),
    hard("TestNonExistentDevice", "var:var-gpu@/job:foo/replica:17")
        .invalid(&["/job:foo/replica:17 was requested, and there is no such device", "devices: CPU:0"]),
    hard("TestUseGpuWithNoCuda", "var:var@/device:gpu:0")
        .among("CPU:0")
        .invalid(&["/device:GPU:0 was requested", "no GPU is open: open one"]),
];
