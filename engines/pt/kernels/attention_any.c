/* attend_chunk without products of bfloat16 values: attention_rows.h for a cache in float32, and for one in bfloat16
 * where the machine has no instruction for them. */
#include "attention.h"
#include "typed.h"

#define T float
#include "attention_rows.h"
#undef T
#if !HAS_DOTS
#define T bf16
#include "attention_rows.h"
#undef T
#endif
