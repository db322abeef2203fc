from benchmarks.data.convert import main

main()
