#!/bin/sh
# Replace the model behind a search: base -> v1 -> tune -> v2 -> shadow -> gate -> promote -> rollback -> promote.
#
#   sh recipes/new_model.sh MODEL TRAIN CATALOG TEST OUT [key=value ...]      keys of recipes/catalog_images.yaml
#
# MODEL: the base. TRAIN: packed rows to tune on. CATALOG: packed rows, the items. TEST: packed rows of the same products that
# neither model was trained on, for the gate. OUT gets run/ and shop/. A refused promotion ends the script; v1 stays live.
set -eu
model=$1 train=$2 catalog=$3 test=$4 out=$5
shift 5
here=$(dirname "$0")

mmtune index build    "$out/shop" --model "$model" --data "$catalog"
mmtune index promote  "$out/shop" v1 --why "the first version"
mmtune train          "$here/catalog_images.yaml" model="$model" data.train="$train" data.val=null run.dir="$out/run" "$@"
mmtune index plan     "$out/shop" --model "$out/run/artifact"
mmtune index build    "$out/shop" --model "$out/run/artifact"
mmtune index shadow   "$out/shop" v2 --queries "$test"
mmtune index promote  "$out/shop" v2 --queries "$test" --why "tuned"
mmtune index rollback "$out/shop" --why "to see that it works"
mmtune index promote  "$out/shop" v2 --queries "$test" --why "the exercise is over"
mmtune index status   "$out/shop"
mmtune index journal  "$out/shop"
