"""The recipe block `runtime:`: how a run uses the processor."""

from typing import Annotated, Literal

from pydantic import Field

from mmtune.recipe.block import RecipeBlock


class RuntimeConfig(RecipeBlock):
    """How a run uses the processor. Another number of threads can change the last bit of results, because sums are then added in
    another order."""

    threads: Literal["auto"] | Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="threads of a training step on a CPU, in each process; null: OMP_NUM_THREADS, or one for each CPU that affinity and "
        "container quota allow; auto: the number that is fastest in the first steps, measured again when steps become far slower. "
        "Runs with the same number are bit-identical on one machine; with auto the last bit may differ",
    )
