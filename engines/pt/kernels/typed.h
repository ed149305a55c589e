/* Names of what is compiled once for each type T; OF_Y: for another type Y. */
#pragma once
#define JOINED(name, type) name##_##type
#define NAMED(name, type) JOINED(name, type)
#define OF(name) NAMED(name, T)
#define OF_Y(name) NAMED(name, Y)
