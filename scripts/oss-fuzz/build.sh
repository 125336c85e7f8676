#!/bin/bash -eu
# Build fuzz targets into $OUT, for OSS-Fuzz and ClusterFuzzLite.
# Licensed under the Apache License, Version 2.0: http://www.apache.org/licenses/LICENSE-2.0
#
#   $SRC           the checkout is $SRC/nvmx-fuzz
#   $WORK          scratch space
#   $OUT           all that survives: for each target the program, its seeds, dictionary and options
#   $NVMX_TARGETS  which targets (default: all of fuzz/nvmx_fuzz/targets.py)
#
# compile_python_fuzzer, of the base image, packages a target with PyInstaller; with SANITIZER=coverage it
# also writes into the target file, hence the copy. Its wrapper preloads a sanitizer together with libFuzzer.
# There is no native code here to sanitize, and a libFuzzer that is loaded before the target never learns of
# the target's own mutators and runs a third as fast; so that goes, as OSS-Fuzz's guide for Python says.

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "build.sh: Python 3.11 or newer is needed, this is $(python3 --version)" >&2
    exit 2
}
export PYTHONPATH="$SRC/nvmx-fuzz:$SRC/nvmx-fuzz/fuzz"
cd "$WORK"
for target in ${NVMX_TARGETS:-$(python3 -m nvmx_fuzz.targets)}; do
    cp "$SRC/nvmx-fuzz/fuzz/$target.py" .
    compile_python_fuzzer "$WORK/$target.py" --collect-submodules nvmx_core --strip
    sed -i 's/^LD_PRELOAD=[^ ]* //' "$OUT/$target"
    python3 -m nvmx_fuzz.oss_fuzz "$target" "$OUT"
done
