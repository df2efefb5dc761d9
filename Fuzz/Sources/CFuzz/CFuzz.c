// Declarations only; the code is in libFuzzer.
