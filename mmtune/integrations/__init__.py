"""Models and collections in other libraries: MTEB, LangChain, LlamaIndex, Haystack, and tables for embedding viewers.

Each module needs its library and is imported by itself, e.g. `from mmtune.integrations.langchain import CollectionRetriever`.
"""
