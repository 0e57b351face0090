//! Strings: the same structure as any tensor, comparisons by bytes. Expected values follow from TensorFlow's
//! documented meaning, by hand.

use convoke::prelude::*;
use convoke_tests::{case, check, devices};

/// A tensor of byte strings, none of which need be UTF-8.
fn strings(sizes: &[usize], all: &[&[u8]]) -> HostTensor {
    HostTensor::strings(sizes, all.iter().copied()).unwrap()
}

/// `[2, 3]`: an empty string, embedded NULs and bytes that are no UTF-8 among them.
fn table() -> HostTensor {
    strings(
        &[2, 3],
        &[b"a", b"", b"\x00\x00", b"\xff\xfe", b"\xc3\xa9", b"long enough to be on the heap"],
    )
}

fn flags(sizes: &[usize], all: &[bool]) -> HostTensor {
    HostTensor::new(sizes, all.to_vec()).unwrap()
}

#[test]
fn views_of_strings() {
    let [a, b, c, d, e, f]: [&[u8]; 6] =
        [b"a", b"", b"\x00\x00", b"\xff\xfe", b"\xc3\xa9", b"long enough to be on the heap"];
    let empty = || strings(&[0, 3], &[]);
    check(
        "transpose",
        |xs| xs[0].transpose(),
        &[
            case("by hand").x(table()).y(strings(&[3, 2], &[a, d, b, e, c, f])),
            case("empty").x(empty()).y(strings(&[3, 0], &[])),
            case("size one").x(strings(&[1, 1], &[d])).y(strings(&[1, 1], &[d])),
        ],
    );
    check(
        "reshape of transpose",
        |xs| xs[0].transpose().reshape(&[-1]),
        &[case("must move").x(table()).y(strings(&[6], &[a, d, b, e, c, f]))],
    );
    check(
        "slice of transpose",
        |xs| xs[0].transpose().slice(&[1, 0], &[None, Some(1)]),
        &[case("by hand").x(table()).y(strings(&[2, 1], &[b, c]))],
    );
    check(
        "slice",
        |xs| xs[0].slice(&[0, 1], &[None, None]),
        &[case("by hand").x(table()).y(strings(&[2, 2], &[b, c, e, f]))],
    );
    check(
        "slice to nothing",
        |xs| xs[0].slice(&[2, 1], &[None, None]),
        &[case("by hand").x(table()).y(strings(&[0, 2], &[]))],
    );
    check(
        "broadcast and tile",
        |xs| xs[0].reshape(&[2, 1, 3]).broadcast_to(&[2, 2, 3]).reshape(&[4, 3]),
        &[case("by hand").x(table()).y(strings(&[4, 3], &[a, b, c, a, b, c, d, e, f, d, e, f]))],
    );
    check(
        "a scalar, repeated",
        |xs| xs[0].broadcast_to(&[2, 2]),
        &[case("by hand").x("x").y(strings(&[2, 2], &[&b"x"[..]; 4]))],
    );
    check(
        "expand and squeeze",
        |xs| xs[0].expand_dims(1).identity().squeeze(&[1]),
        &[case("there and back").x(table()).y(table()), case("empty").x(empty()).y(empty())],
    );
    check(
        "reshape",
        |xs| xs[0].reshape(&[4, -1]),
        &[case("misfit")
            .x(table())
            .refused("cannot reshape [2, 3], which has 6 elements, to [4, -1]")],
    );
}

#[test]
fn concat_of_strings() {
    let row = |x: &[u8], y: &[u8]| strings(&[1, 2], &[x, y]);
    check(
        "concat",
        |xs| xs[0].graph().concat(&[&xs[0], &xs[1]], 0),
        &[
            case("by hand")
                .x(row(b"a", b"\xff"))
                .x(row(b"", b"\x00"))
                .y(strings(&[2, 2], &[b"a", b"\xff", b"", b"\x00"])),
            case("nothing and something")
                .x(strings(&[0, 2], &[]))
                .x(row(b"a", b"b"))
                .y(row(b"a", b"b")),
        ],
    );
    check(
        "concat along the last axis, of what lies in another order",
        |xs| xs[0].graph().concat(&[&xs[0].transpose(), &xs[1]], 1),
        &[case("by hand")
            .x(strings(&[2, 2], &[b"a", b"b", b"c", b"d"]))
            .x(strings(&[2, 1], &[b"x", b"y"]))
            .y(strings(&[2, 3], &[b"a", b"c", b"x", b"b", b"d", b"y"]))],
    );
    check(
        "concat",
        |xs| xs[0].graph().concat(&[&xs[0], &xs[1]], 0),
        &[
            case("numbers beside strings")
                .x(strings(&[1], &[b"a"]))
                .x([1.0f32])
                .refused("dtypes differ: string and f32; cast one of them"),
            case("other sizes")
                .x(strings(&[1, 2], &[b"a", b"b"]))
                .x(strings(&[1, 1], &[b"a"]))
                .refused("expected shape [?, 2], got [?, 1]"),
        ],
    );
}

#[test]
fn stacks_of_strings() {
    check(
        "stack and unstack",
        |xs| {
            let both = xs[0].graph().stack(&[&xs[0], &xs[1]], 1);
            both.slice(&[0, 1], &[None, Some(1)]).squeeze(&[1])
        },
        &[case("by hand")
            .x(strings(&[2], &[b"a", b"b"]))
            .x(strings(&[2], &[b"\xfe", b""]))
            .y(strings(&[2], &[b"\xfe", b""]))],
    );
}

#[test]
fn gathered_strings() {
    check(
        "gather",
        |xs| xs[0].gather(&xs[1], 0),
        &[
            case("rows").x(table()).x([1i32, 0, 1]).y(strings(
                &[3, 3],
                &[
                    b"\xff\xfe",
                    b"\xc3\xa9",
                    b"long enough to be on the heap",
                    b"a",
                    b"",
                    b"\x00\x00",
                    b"\xff\xfe",
                    b"\xc3\xa9",
                    b"long enough to be on the heap",
                ],
            )),
            case("64-bit indices, a scalar").x(strings(&[2], &[b"x", b"y"])).x(1i64).y("y"),
            case("no indices").x(table()).x(HostTensor::new(&[0], Vec::<i32>::new()).unwrap()),
            case("indices of strings").x(table()).x("1").refused(
                "the indices of gather needs a tensor of integers, got string; cast it first",
            ),
        ],
    );
    check(
        "gather along the last axis of what lies in another order",
        |xs| xs[0].transpose().gather(&xs[1], 1),
        &[case("by hand")
            .x(strings(&[2, 2], &[b"a", b"b", b"c", b"d"]))
            .x([1i32, 1])
            .y(strings(&[2, 2], &[b"c", b"c", b"d", b"d"]))],
    );
}

#[test]
fn padded_strings() {
    let row = |x: &[u8], y: &[u8]| strings(&[1, 2], &[x, y]);
    check(
        "pad",
        |xs| xs[0].pad(&[[1, 0], [0, 2]]),
        &[
            case("with empty strings")
                .x(row(b"a", b"\xff"))
                .y(strings(&[2, 4], &[b"", b"", b"", b"", b"a", b"\xff", b"", b""])),
            case("nothing").x(strings(&[0, 0], &[])).y(strings(&[1, 2], &[b"", b""])),
        ],
    );
}

#[test]
fn choices_of_strings() {
    check(
        "select",
        |xs| xs[0].select(&xs[1], &xs[2]),
        &[
            case("by hand")
                .x([true, false, true])
                .x(strings(&[3], &[b"a", b"b", b"\xff"]))
                .x(strings(&[3], &[b"x", b"\x00", b"z"]))
                .y(strings(&[3], &[b"a", b"\x00", b"\xff"])),
            case("broadcasting")
                .x(flags(&[2, 1], &[true, false]))
                .x(strings(&[2], &[b"a", b"b"]))
                .x("-")
                .y(strings(&[2, 2], &[b"a", b"b", b"-", b"-"])),
            case("empty").x(flags(&[0], &[])).x(strings(&[0], &[])).x("-").y(strings(&[0], &[])),
            case("sides of two dtypes")
                .x([true])
                .x("a")
                .x(1.0f32)
                .refused("dtypes differ: string and f32; cast one of them"),
        ],
    );
    check(
        "select by a constant, of what lies in another order",
        |xs| {
            let condition = xs[0].graph().constant([[true, false], [false, true]]);
            condition.select(xs[0].transpose(), "none")
        },
        &[case("by hand")
            .x(strings(&[2, 2], &[b"a", b"b", b"c", b"d"]))
            .y(strings(&[2, 2], &[b"a", b"none", b"none", b"d"]))],
    );
}

#[test]
fn comparisons_of_strings() {
    let x = || strings(&[4], &[b"a", b"", b"\xff\x00", b"same"]);
    let y = || strings(&[4], &[b"b", b"", b"\xff\x01", b"same"]);
    check(
        "equal",
        |xs| xs[0].equal(&xs[1]),
        &[
            case("by hand").x(x()).x(y()).y([false, true, false, true]),
            // Bytes are compared to their ends, also behind a NUL.
            case("a NUL is no end").x("a\0b").x("a\0c").y(false),
            case("one is the beginning of the other").x("ab").x("abc").y(false),
            case("broadcasting")
                .x(strings(&[2, 1], &[b"a", b"b"]))
                .x(strings(&[2], &[b"b", b"a"]))
                .y([[false, true], [true, false]]),
            case("empty").x(strings(&[0], &[])).x("a").y(flags(&[0], &[])),
            case("numbers")
                .x("1")
                .x(1i32)
                .refused("dtypes differ: string and i32; cast one of them"),
        ],
    );
    check(
        "not_equal",
        |xs| xs[0].not_equal(&xs[1]),
        &[case("by hand").x(x()).x(y()).y([true, false, true, false])],
    );
    check(
        "a sum of what is equal",
        |xs| xs[0].transpose().equal("a").cast(I32).sum(()),
        &[case("by hand").x(strings(&[2, 2], &[b"a", b"b", b"a", b"A"])).y(2i32)],
    );
    let refusals: [fn(&Tensor, &Tensor) -> Tensor; 6] = [
        |x, y| x.less(y),
        |x, y| x.greater_equal(y),
        |x, y| x.maximum(y),
        |x, y| x + y,
        |x, y| x.sum(()) + y,
        |x, y| x.cast(F32) + y,
    ];
    let messages = [
        "less needs a tensor of numbers, got string; cast it first",
        "greater_equal needs a tensor of numbers, got string; cast it first",
        "maximum needs a tensor of numbers, got string; cast it first",
        "add needs a tensor of numbers, got string; cast it first",
        "a reduction needs a tensor of numbers, got string; cast it first",
        "cast needs a tensor of numbers or bool, got string; cast it first",
    ];
    for (build, message) in refusals.into_iter().zip(messages) {
        let g = Graph::new();
        let x = g.placeholder("x", Strings, dims![2]);
        build(&x, &x);
        let errors = g.check();
        assert_eq!(errors[0].message(), message);
        assert_eq!(errors[0].kind(), ErrorKind::InvalidArgument);
    }
}

/// Each constant is what it was, though they read alike where bytes that are no UTF-8 are left out.
#[test]
fn constants_that_are_no_text_are_told_apart() {
    let g = Graph::new();
    let [one, other] = [b"\xfe", b"\xff"].map(|bytes| g.constant(strings(&[1], &[bytes])));
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let (one, other) = session.run(&[], (&one.identity(), &other.identity())).unwrap();
    assert_eq!(one, strings(&[1], &[b"\xfe"]));
    assert_eq!(other, strings(&[1], &[b"\xff"]));
}

/// Structure, shapes and sizes of strings whose sizes are known in the run only.
#[test]
fn strings_of_sizes_that_are_fed() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", Strings, dims![None, None]);
        let both = g.concat(&[&x, &x.transpose()], 0);
        let session = device.session(&g);
        for n in [0usize, 1, 3] {
            let all: Vec<Vec<u8>> = (0..n * n).map(|i| vec![i as u8; i]).collect();
            let fed = HostTensor::strings(&[n, n], all.clone()).unwrap();
            let (both, shape, size) =
                session.run(&[x.feed(&fed)], (&both, &both.shape(), &both.size())).unwrap();
            let turned = (0..n * n).map(|i| all[i % n * n + i / n].clone());
            let expected: Vec<Vec<u8>> = all.iter().cloned().chain(turned).collect();
            assert_eq!(
                both,
                HostTensor::strings(&[2 * n, n], expected).unwrap(),
                "{}",
                device.name
            );
            assert_eq!(shape.to_vec::<i64>().unwrap(), [2 * n as i64, n as i64]);
            assert_eq!(size.scalar::<i64>().unwrap(), (2 * n * n) as i64);
        }
    }
}

#[test]
fn an_index_of_strings_that_is_out_of_range_fails_the_run() {
    for device in devices() {
        let g = Graph::new();
        let x = g.placeholder("x", Strings, dims![3]);
        let at = g.placeholder("at", I32, dims![2]);
        let y = x.gather(&at, 0);
        let session = device.session(&g);
        let x = x.feed(strings(&[3], &[b"a", b"b", b"c"]));
        for (bad, index) in [(3, [0, 3]), (-1, [2, -1])] {
            let error = session.run(&[x.clone(), at.feed(index)], &y).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            let message = format!("index {bad} at position 1 is out of range for an axis of 3");
            assert_eq!(error.message(), message, "{}", device.name);
            assert_eq!(error.node(), Some("gather"));
        }
        let many = session.run(&[x, at.feed([2, 0])], &y).unwrap();
        assert_eq!(many, strings(&[2], &[b"c", b"a"]));
    }
}

#[test]
fn joins_of_strings() {
    check(
        "string_join",
        |xs| xs[0].graph().string_join(&xs.iter().collect::<Vec<_>>(), "--"),
        &[
            case("by hand")
                .x(strings(&[2], &[b"a", b"\xff"]))
                .x(strings(&[2], &[b"", b"\x00"]))
                .x(strings(&[2], &[b"c", b"d"]))
                .y(strings(&[2], &[b"a----c", b"\xff--\x00--d"])),
            case("a scalar is repeated")
                .x(strings(&[2, 1], &[b"a", b"b"]))
                .x("x")
                .y(strings(&[2, 1], &[b"a--x", b"b--x"])),
            case("scalars").x("a").x("b").y("a--b"),
            case("one").x(strings(&[1], &[b"a"])).y(strings(&[1], &[b"a"])),
            case("empty").x(strings(&[0], &[])).x("x").y(strings(&[0], &[])),
            // TensorFlow joins shapes that are equal or scalars, and broadcasts no others.
            case("other shapes")
                .x(strings(&[2], &[b"a", b"b"]))
                .x(strings(&[1], &[b"a"]))
                .refused("expected shape [2], got [1]"),
            case("a number").x("a").x(1i32).refused(
                "an operation on strings needs a tensor of strings, got i32; cast it first",
            ),
        ],
    );
    check(
        "string_join of what lies in another order",
        |xs| xs[0].graph().string_join(&[&xs[0].transpose(), &xs[0]], ""),
        &[case("by hand")
            .x(strings(&[2, 2], &[b"a", b"b", b"c", b"d"]))
            .y(strings(&[2, 2], &[b"aa", b"cb", b"bc", b"dd"]))],
    );
    let g = Graph::new();
    g.string_join(&[], "");
    assert_eq!(g.check()[0].message(), "string_join needs at least one tensor");
}

/// The examples of TensorFlow's documentation of `tf.reduce_join`, and what is at their edges.
#[test]
fn strings_joined_along_axes() {
    let a = || strings(&[2, 2], &[b"a", b"b", b"c", b"d"]);
    let join = |axes: &'static [i64], keep_dims: bool, separator: &'static str| {
        move |xs: &[Tensor]| xs[0].reduce_join(axes, keep_dims, separator)
    };
    check("0", join(&[0], false, ""), &[case("a").x(a()).y(strings(&[2], &[b"ac", b"bd"]))]);
    check("1", join(&[1], false, ""), &[case("a").x(a()).y(strings(&[2], &[b"ab", b"cd"]))]);
    check("-2", join(&[-2], false, ""), &[case("a").x(a()).y(strings(&[2], &[b"ac", b"bd"]))]);
    check(
        "0, kept",
        join(&[0], true, ""),
        &[case("a").x(a()).y(strings(&[1, 2], &[b"ac", b"bd"]))],
    );
    check(
        "1, kept",
        join(&[1], true, ""),
        &[case("a").x(a()).y(strings(&[2, 1], &[b"ab", b"cd"]))],
    );
    check(
        "0, by points",
        join(&[0], false, "."),
        &[case("a").x(a()).y(strings(&[2], &[b"a.c", b"b.d"]))],
    );
    check("0 and 1", join(&[0, 1], false, ""), &[case("a").x(a()).y("acbd")]);
    check("1 and 0", join(&[1, 0], false, ""), &[case("a").x(a()).y("abcd")]);
    check("1 and 0, by points", join(&[1, 0], false, "."), &[case("a").x(a()).y("a.b.c.d")]);
    check("none", join(&[], false, ""), &[case("a").x(a()).y(a())]);
    check(
        "all",
        |xs| xs[0].reduce_join((), false, ""),
        &[case("a").x(a()).y("abcd"), case("scalar").x("x").y("x")],
    );
    check(
        "the middle of three, of what lies in another order",
        |xs| xs[0].permute(&[2, 1, 0]).reduce_join(1, false, "+"),
        &[case("by hand")
            .x(strings(&[2, 2, 1], &[b"a", b"b", b"c", b"d"]))
            .y(strings(&[1, 2], &[b"a+b", b"c+d"]))],
    );
    check(
        "nothing to join",
        join(&[1], false, "."),
        &[
            case("empty strings").x(strings(&[2, 0], &[])).y(strings(&[2], &[b"", b""])),
            case("no strings").x(strings(&[0, 2], &[])).y(strings(&[0], &[])),
            case("out of range")
                .x(strings(&[2], &[b"a", b"b"]))
                .refused("axis 1 is out of range for rank 1"),
        ],
    );
    check(
        "twice",
        join(&[0, -2], false, ""),
        &[case("a").x(a()).refused("axis -2 is given twice")],
    );
}

#[test]
fn numbers_as_strings() {
    // By C's printf with %d, %f: six digits behind the point, ties to even.
    check(
        "as_string",
        |xs| xs[0].as_string(),
        &[
            case("f32")
                .x([[1.0f32, -0.5], [34_359_738_368.0, f32::INFINITY]])
                .y(strings(&[2, 2], &[b"1.000000", b"-0.500000", b"34359738368.000000", b"inf"])),
            case("f64").x([0.0078125f64, -0.0, 1e-7, f64::NEG_INFINITY, f64::NAN, 1.0 / 3.0]).y(
                strings(
                    &[6],
                    &[b"0.007812", b"-0.000000", b"0.000000", b"-inf", b"nan", b"0.333333"],
                ),
            ),
            case("f32, whose digits are those of the nearest float").x(0.1f32).y("0.100000"),
            case("i32").x([i32::MIN, 0, 7]).y(strings(&[3], &[b"-2147483648", b"0", b"7"])),
            case("i64").x(i64::MAX).y("9223372036854775807"),
            case("u64").x(u64::MAX).y("18446744073709551615"),
            case("i8").x([-128i8, 127]).y(strings(&[2], &[b"-128", b"127"])),
            case("bool").x([true, false]).y(strings(&[2], &[b"true", b"false"])),
            case("empty")
                .x(HostTensor::new(&[0, 2], Vec::<f32>::new()).unwrap())
                .y(strings(&[0, 2], &[])),
            case("strings")
                .x("a")
                .refused("as_string needs a tensor of numbers or bool, got string; cast it first"),
        ],
    );
    check(
        "as_string of what lies in another order",
        |xs| (xs[0].transpose().as_string()).slice(&[0, 1], &[None, Some(1)]),
        &[case("by hand").x([[1i32, 2], [3, 4]]).y(strings(&[2, 1], &[b"3", b"4"]))],
    );
}

#[test]
fn strings_as_numbers() {
    check(
        "string_to_number, f32",
        |xs| xs[0].string_to_number(F32),
        &[
            case("by hand")
                .x(strings(&[2, 3], &[b"1", b"-2.5e-3", b" .5\t", b"INF", b"-inf", b"16777217"]))
                .y([[1.0f32, -0.0025, 0.5], [f32::INFINITY, f32::NEG_INFINITY, 16777216.0]]),
            case("nan").x("nan").y(f32::NAN),
            case("empty")
                .x(strings(&[0], &[]))
                .y(HostTensor::new(&[0], Vec::<f32>::new()).unwrap()),
            case("a number").x(1i32).refused(
                "an operation on strings needs a tensor of strings, got i32; cast it first",
            ),
        ],
    );
    check(
        "string_to_number, f64",
        |xs| xs[0].transpose().string_to_number(F64),
        &[case("by hand").x(strings(&[1, 2], &[b"0.1", b"1e300"])).y([[0.1f64], [1e300]])],
    );
    check(
        "string_to_number, i32",
        |xs| xs[0].string_to_number(I32),
        &[case("by hand").x(strings(&[3], &[b"-2147483648", b"+7", b" 0 "])).y([i32::MIN, 7, 0])],
    );
    check(
        "string_to_number, i64",
        |xs| xs[0].string_to_number(I64),
        &[case("by hand").x("9223372036854775807").y(i64::MAX)],
    );
    check(
        "string_to_number, u8",
        |xs| xs[0].string_to_number(U8),
        &[case("not so").x("1").refused("unsupported: strings as u8; read f32, f64, i32 or i64")],
    );
    check(
        "there and back",
        |xs| xs[0].as_string().string_to_number(I32),
        &[case("by hand").x([[1i32, -20], [300, 0]]).y([[1i32, -20], [300, 0]])],
    );
}

#[test]
fn what_is_no_number_fails_the_run() {
    let bad: [(DType, &[u8]); 6] = [
        (F32, b"1,5"),
        (F32, b""),
        (I32, b"2147483648"),
        (I32, b"1.0"),
        (I64, b"0x10"),
        (F64, b"\xff"),
    ];
    for (dtype, bytes) in bad {
        for fed in [true, false] {
            let g = Graph::new();
            let all = strings(&[2], &[b"1", bytes]);
            let x = match fed {
                true => g.placeholder("x", Strings, dims![2]),
                false => g.constant(all.clone()),
            };
            let y = x.string_to_number(dtype);
            let session = Session::new(&g, &Devices::cpu()).unwrap();
            let feeds = if fed { vec![x.feed(all)] } else { Vec::new() };
            let error = session.run(&feeds, &y).unwrap_err();
            assert_eq!(
                (error.kind(), error.node()),
                (ErrorKind::InvalidArgument, Some("string_to_number"))
            );
            let shown = String::from_utf8_lossy(bytes).into_owned();
            let message = format!("expected a number of {dtype}, got {shown:?} at place 1");
            assert_eq!(error.message(), message);
        }
    }
}

#[test]
fn lengths_of_strings() {
    check(
        "string_length",
        |xs| xs[0].string_length(),
        &[
            case("bytes").x(table()).y([[1i32, 0, 2], [2, 2, 29]]),
            case("empty")
                .x(strings(&[0], &[]))
                .y(HostTensor::new(&[0], Vec::<i32>::new()).unwrap()),
            case("numbers").x([1i32]).refused(
                "an operation on strings needs a tensor of strings, got i32; cast it first",
            ),
        ],
    );
}

#[test]
fn parts_of_strings() {
    check(
        "substr",
        |xs| xs[0].substr(&xs[1], &xs[2]),
        &[
            // The first two are examples of TensorFlow's documentation of `tf.substr`.
            case("scalar place and length")
                .x(strings(&[2], &[b"Hello", b"World"]))
                .x(1i32)
                .x(3i32)
                .y(strings(&[2], &[b"ell", b"orl"])),
            case("a place and a length for each")
                .x(strings(
                    &[2, 3],
                    &[b"ten", b"eleven", b"twelve", b"thirteen", b"fourteen", b"fifteen"],
                ))
                .x([[1i32, 2, 3], [1, 2, 3]])
                .x([[2i32, 3, 4], [4, 3, 2]])
                .y(strings(&[2, 3], &[b"en", b"eve", b"lve", b"hirt", b"urt", b"te"])),
            case("of one string several")
                .x("thirteen")
                .x([1i32, 5, 7])
                .x([3i32, 2, 1])
                .y(strings(&[3], &[b"hir", b"ee", b"n"])),
            case("bytes, from the end, and over it")
                .x(strings(&[3], &[b"\xc3\xa9", b"a\0b", b"abc"]))
                .x([-1i64, 1, -3])
                .x([9i64, 2, 0])
                .y(strings(&[3], &[b"\xa9", b"\0b", b""])),
            case("at the end").x("abc").x(3i32).x(1i32).y(""),
            case("empty").x(strings(&[0], &[])).x(5i32).x(1i32).y(strings(&[0], &[])),
            case("two dtypes")
                .x("a")
                .x(1i32)
                .x(1i64)
                .refused("dtypes differ: i32 and i64; cast one of them"),
            case("a float")
                .x("a")
                .x(1f32)
                .x(1f32)
                .refused("substr's place needs a tensor of integers, got f32; cast it first"),
        ],
    );
}

#[test]
fn parts_that_are_not_there() {
    for (pos, len, message) in [
        (4, 1, "the first byte 4 is out of range: expected from -3 to 3, of the string at place 1"),
        (
            -4,
            1,
            "the first byte -4 is out of range: expected from -3 to 3, of the string at place 1",
        ),
        (0, -1, "the length -1 is out of range: expected at least 0, of the string at place 1"),
    ] {
        let g = Graph::new();
        let x = g.placeholder("x", Strings, dims![2]);
        let y = x.substr(g.constant([0, pos]), g.constant([1, len]));
        let session = Session::new(&g, &Devices::cpu()).unwrap();
        let error = session.run(&[x.feed(strings(&[2], &[b"abc", b"abc"]))], &y).unwrap_err();
        assert_eq!((error.kind(), error.node()), (ErrorKind::InvalidArgument, Some("substr")));
        assert_eq!(error.message(), message);
    }
}

#[test]
fn strings_have_no_gradients() {
    let g = Graph::new();
    let x = g.placeholder("x", F32, dims![2]);
    let y = x.as_string().string_to_number(F32).sum(());
    assert!(y.gradients(&[&x])[0].is_none());
    // Though a look-up of numbers has one.
    let names = g.placeholder("names", Strings, dims![3]);
    let found = names.gather(g.constant([0i32, 2]), 0);
    assert!(found.gradients(&[&names])[0].is_none());
    assert!(g.check().is_empty());
}

/// More strings than there is memory for.
#[test]
fn strings_without_memory_are_an_error() {
    let g = Graph::new();
    let v = g.variable("v", Init::Zeros, Strings, [1 << 59]);
    let session = Session::new(&g, &Devices::cpu()).unwrap();
    let error = session.run(&[], v.initialized_value()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
}
