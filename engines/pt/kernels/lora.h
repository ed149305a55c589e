/* Low-rank updates of a step's rows; lora.c says what the arrays are. */
#pragma once
#include "lanes.h"

typedef bf16 mixed; /* x and matrices in bfloat16, results in float32 */

#define UPDATED_ROWS 4 /* of a block, at most */

typedef struct {
  const void *const *a, *const *b;
  const int32_t *ranks, *outs;
  int32_t layers, in, height;
} Updates;

typedef struct {
  const int32_t *slots, *order, *starts;
  int32_t blocks;
  float *low;
} Dealt;

/* Have a part of the matrices come nearer from memory while something else is computed. `size` of a value in bytes. */
void lora_fetch(const Updates *u, const Dealt *d, int size, int part, int parts);

int lora_down_tasks(const Updates *u, const Dealt *d);
int lora_up_tasks(const Updates *u, const Dealt *d);
void lora_down_float(const Updates *u, const Dealt *d, const float *x, int task);
void lora_down_bf16(const Updates *u, const Dealt *d, const bf16 *x, int task);
void lora_down_mixed(const Updates *u, const Dealt *d, const bf16 *x, int task);
void lora_up_float(const Updates *u, const Dealt *d, float *const *y, int task);
void lora_up_bf16(const Updates *u, const Dealt *d, bf16 *const *y, int task);
void lora_up_mixed(const Updates *u, const Dealt *d, float *const *y, int task);
void lora_up_columns_float(const Updates *u, const Dealt *d, float *y, int block, int layer, int first, int last);
void lora_up_columns_mixed(const Updates *u, const Dealt *d, float *y, int block, int layer, int first, int last);
