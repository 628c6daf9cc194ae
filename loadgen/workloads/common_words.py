"""Common English words, most of which are one token in every tokenizer of a language model."""

_TEXT = """
the and that have for not with you this but his from they say her she will one all would there their what out about
who get which when make can like time just him know take people into year your good some could them see other than
then now look only come its over think also back after use two how our work first well way even new want because any
these give day most us is are was were been has had did said made went came told found left right long great little
own old high small large next early young important few public bad same able man woman child world school state
family student group country problem hand part place case week company system program question government number
night point home water room mother area money story fact month lot study book eye job word business issue side kind
head house service friend father power hour game line end member law car city community name president team minute
idea kid body information nothing ago lead social whether understand watch together follow around parent stop face
anything create already speak others read level allow add office spend door health person art sure such war history
party within grow result open change morning walk reason low win research girl guy moment air teacher force offer
enough education across although remember foot second boy maybe toward policy music love process off nice appear
buy wait serve market die send build stay fall cut reach kill remain suggest raise pass sell require report decide
pull return explain hope develop carry break receive agree support hit produce eat cover catch draw choose cause
red blue green black white north south east west land sea river road street town field tree fire light dark cold
hot warm rain wind sun moon star sky earth stone wood gold paper color sound voice song dance image picture letter
page list type form order class test plan model data code key rule set start run turn move play hold bring keep
hear help show try ask need feel become leave put mean let begin seem talk might must should never always often
"""
COMMON_WORDS = tuple(_TEXT.split())
